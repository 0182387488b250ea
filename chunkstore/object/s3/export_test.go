package s3

import "net"

// Dialed returns c with connections made by dial.
func Dialed(c Config, dial func(network, addr string) (net.Conn, error)) Config {
	c.dial = &dial
	return c
}
