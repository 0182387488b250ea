package xapisim

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync/atomic"
	"time"
)

// host is one server of the pool.
type host struct {
	ref         string
	dom0        string // reference of its control domain
	name        string
	address     string
	master      bool
	ln          net.Listener
	nbd         net.Listener
	nbdConns    atomic.Int64
	tls         *tls.Config
	secure      bool   // whether the HTTP server uses TLS
	cert        []byte // DER
	fingerprint string

	// nbdDead is set while the host's NBD server is not running. Pool.mu guards
	// it.
	nbdDead bool
	nbdOpen []net.Conn // connections of the NBD server
	nbdLeft []*object  // VBDs of connections that ended when the NBD server died

	// life ends when the host crashes or xapi restarts. Pool.mu guards it.
	life context.Context
	kill context.CancelFunc
}

// makeCertificate makes the host's self-signed certificate.
func (h *host) makeCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return err
	}
	tpl := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: h.address},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(10, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses:  []net.IP{net.ParseIP(h.address)},
		DNSNames:     []string{h.name},
		IsCA:         true, BasicConstraintsValid: true,
	}
	if h.cert, err = x509.CreateCertificate(rand.Reader, tpl, tpl, &key.PublicKey, key); err != nil {
		return err
	}
	sum := sha256.Sum256(h.cert)
	h.fingerprint = hex.EncodeToString(sum[:])
	h.tls = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{h.cert}, PrivateKey: key}},
		MinVersion:   tls.VersionTLS12,
		// Streams are long, so small records at the start have no benefit.
		DynamicRecordSizingDisabled: true,
	}
	return nil
}

// Certificate returns the certificate of host i, as DER.
func (p *Pool) Certificate(i int) []byte { return p.hosts[i].cert }

// colonHex formats fingerprints as the server does.
func colonHex(b []byte) string {
	parts := make([]string, len(b))
	for i, x := range b {
		parts[i] = fmt.Sprintf("%02X", x)
	}
	return strings.Join(parts, ":")
}

// addHost adds the records of a host.
func (p *Pool) addHost(h *host, mgmt *object) {
	name := h.name
	software, minor := p.cfg.Version.software()
	metrics := p.db.create("host_metrics", map[string]any{
		"memory_total": int64(64 << 30), "memory_free": int64(48 << 30), "live": true, "last_updated": dateOf(p.now()),
	})
	o := p.db.create("host", map[string]any{
		"name_label": name, "name_description": "Default install", "hostname": name, "address": h.address, "enabled": true,
		"API_version_major": int64(2), "API_version_minor": minor, "API_version_vendor": "XenSource",
		"software_version": software, "metrics": metrics.ref, "sched_policy": "credit", "edition": "enterprise-per-socket",
		"capabilities":             strs("xen-3.0-x86_64", "hvm-3.0-x86_32", "hvm-3.0-x86_64"),
		"supported_bootloaders":    strs("pygrub", "eliloader"),
		"cpu_info":                 map[string]any{"cpu_count": "4", "socket_count": "1", "vendor": "simulated"},
		"allowed_operations":       strs("vm_migrate", "provision", "vm_resume", "evacuate", "vm_start"),
		"tls_verification_enabled": true, "suspend_image_sr": nullRef, "crash_dump_sr": nullRef,
	})
	h.ref = o.ref
	for n := range 4 {
		p.db.create("host_cpu", map[string]any{"host": o.ref, "number": int64(n), "vendor": "simulated"})
	}
	p.db.create("PIF", map[string]any{
		"device": "eth0", "network": mgmt.ref, "host": o.ref, "MAC": newMAC(), "MTU": int64(1500), "VLAN": int64(-1),
		"physical": true, "currently_attached": true, "management": true, "IP": h.address, "netmask": "255.0.0.0",
		"ip_configuration_mode": "Static", "metrics": p.db.create("PIF_metrics", map[string]any{"carrier": true}).ref, "managed": true,
	})
	s1 := sha1.Sum(h.cert)
	s256 := sha256.Sum256(h.cert)
	p.db.create("Certificate", map[string]any{
		"name": "", "type": "host", "host": o.ref, "not_before": dateOf(time.Now().Add(-time.Hour)),
		"not_after": dateOf(time.Now().AddDate(10, 0, 0)), "fingerprint": colonHex(s256[:]),
		"fingerprint_sha256": colonHex(s256[:]), "fingerprint_sha1": colonHex(s1[:]),
	})
	dom0 := p.newVM(map[string]any{
		"name_label": "Control domain on host: " + name, "is_control_domain": true, "domain_type": "pv",
		"memory_static_max": int64(4 << 30), "memory_static_min": int64(4 << 30), "memory_dynamic_max": int64(4 << 30),
		"memory_dynamic_min": int64(4 << 30), "VCPUs_max": int64(4), "VCPUs_at_startup": int64(4),
	})
	p.db.put(dom0, "power_state", "Running")
	p.db.put(dom0, "domid", int64(0))
	p.db.put(dom0, "affinity", o.ref)
	p.db.put(dom0, "memory_target", int64(4<<30))
	p.db.put(dom0, "memory_overhead", int64(36<<20))
	p.db.put(dom0, "resident_on", o.ref)
	h.dom0 = dom0.ref
	for _, proto := range []string{"rfb", "vt100"} {
		c := p.db.create("console", map[string]any{"protocol": proto, "VM": dom0.ref})
		p.db.put(c, "location", "https://"+h.address+"/console?ref="+c.ref)
	}
	p.db.put(o, "control_domain", dom0.ref)
}
