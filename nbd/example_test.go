package nbd_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"net"

	"xenkeep/nbd"
)

// Read from an export over NBD. The server is one of this package, at the other
// end of a pipe; Options.Address is the address of a server on the network.
func ExampleDial() {
	ctx := context.Background()
	server := &nbd.Server{Open: func(context.Context, string) (nbd.Export, error) {
		return bytes.NewReader([]byte("the bytes of a disk")), nil
	}}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		client, other := net.Pipe()
		go server.ServeConn(ctx, other)
		return client, nil
	}

	conn, err := nbd.Dial(ctx, nbd.Options{ExportName: "disk", Dial: dial})
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	p := make([]byte, 5)
	if _, err := conn.ReadAt(ctx, p, 4); err != nil { // safe for concurrent use
		log.Fatal(err)
	}
	fmt.Printf("%d bytes, read-only: %t, at 4: %q\n", conn.Size(), conn.Info().ReadOnly, p)
	// Output:
	// 19 bytes, read-only: true, at 4: "bytes"
}
