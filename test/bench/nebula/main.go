// Command nebula is a nebula daemon for the benchmark, made of its library, and
// the maker of the keys for two hosts. It is a module of its own, because nebula
// needs more preparation than the rest: see ../prepare.go.
//
//	nebula keys DIR PREFIX...   writes ca.crt, and h1.crt, h1.key, … for each
//	nebula run FILE             runs by that configuration until SIGTERM
package main

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/slackhq/nebula"
	"github.com/slackhq/nebula/cert"
	"github.com/slackhq/nebula/config"
	"github.com/slackhq/nebula/logging"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "nebula:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) > 2 && args[0] == "keys":
		return makeKeys(args[1], args[2:])
	case len(args) == 2 && args[0] == "run":
		return serve(args[1])
	}
	return errors.New("usage: nebula keys DIR PREFIX... | nebula run FILE")
}

// life is how long the certificates hold.
const life = 24 * time.Hour

func makeKeys(dir string, prefixes []string) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now().Add(-time.Minute)
	authority := &cert.TBSCertificate{
		Version: cert.Version2, Name: "bench", Curve: cert.Curve_CURVE25519, IsCA: true,
		NotBefore: now, NotAfter: now.Add(life), PublicKey: public,
	}
	ca, err := authority.Sign(nil, cert.Curve_CURVE25519, private)
	if err != nil {
		return fmt.Errorf("make authority: %w", err)
	}
	if err := writeCertificate(ca, filepath.Join(dir, "ca.crt")); err != nil {
		return err
	}
	for i, text := range prefixes {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return err
		}
		key, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("h%d", i+1)
		host := &cert.TBSCertificate{
			Version: cert.Version2, Name: name, Curve: cert.Curve_CURVE25519, Networks: []netip.Prefix{prefix},
			NotBefore: now.Add(time.Second), NotAfter: now.Add(life - time.Second), PublicKey: key.PublicKey().Bytes(),
		}
		signed, err := host.Sign(ca, cert.Curve_CURVE25519, private)
		if err != nil {
			return fmt.Errorf("sign certificate of %s: %w", name, err)
		}
		pem := cert.MarshalPrivateKeyToPEM(cert.Curve_CURVE25519, key.Bytes())
		err = errors.Join(
			writeCertificate(signed, filepath.Join(dir, name+".crt")),
			os.WriteFile(filepath.Join(dir, name+".key"), pem, 0o600),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

func writeCertificate(c cert.Certificate, file string) error {
	pem, err := c.MarshalPEM()
	if err != nil {
		return err
	}
	return os.WriteFile(file, pem, 0o600)
}

func serve(file string) error {
	log := logging.NewLogger(os.Stderr)
	c := config.NewC(log)
	if err := c.Load(file); err != nil {
		return fmt.Errorf("load %s: %w", file, err)
	}
	if err := logging.ApplyConfig(log, c); err != nil {
		return err
	}
	control, err := nebula.Main(c, false, "", log, nil)
	if err != nil {
		return err
	}
	if err := control.Start(); err != nil {
		return err
	}
	control.ShutdownBlock()
	return nil
}
