// Package gcm is AES-256-GCM for datagrams: the standard library's, but on CPUs
// whose vector instructions work on four blocks at once (AVX-512 with VAES and
// VPCLMULQDQ) a faster path of our own for the one form that datagrams have:
// sealed and opened in place, a header of 16 bytes, a nonce of 12. All else, and
// all on other CPUs, is the standard library's work.
//
// Each key's first act is to compare both on one text: where they differ, the
// standard library's is used.
//
// It keeps no nonces apart and bounds no messages: that is package session's.
package gcm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
)

// What the faster path takes; all in bytes.
const (
	headerLen = 16
	nonceLen  = 12
	tagLen    = 16
	maxText   = 1 << 20 // the standard's own bound is far above
)

var errForged = errors.New("gcm: message authentication failed")

// New returns AES-256-GCM with nonces of 12 and tags of 16 bytes. It is safe for
// concurrent use.
func New(key *[32]byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	standard, err := cipher.NewGCM(block)
	if err != nil || !vectors {
		return standard, err
	}
	if fast := newVector(standard, block, key); agree(fast, standard) {
		return fast, nil
	}
	return standard, nil // a CPU, or its emulation, that does not what it says
}

// agree has both seal and open one text, which goes nowhere.
func agree(fast, standard cipher.AEAD) bool {
	var text [300]byte
	var header [headerLen]byte
	nonce := bytes.Repeat([]byte{0xff}, nonceLen)
	for i := range text {
		text[i] = byte(i)
	}
	want := standard.Seal(nil, nonce, text[:], header[:])
	room := append(bytes.Clone(text[:]), make([]byte, tagLen)...)
	sealed := fast.Seal(room[:0], nonce, room[:len(text)], header[:])
	if !bytes.Equal(sealed, want) {
		return false
	}
	plain, err := fast.Open(sealed[:0], nonce, sealed, header[:])
	return err == nil && bytes.Equal(plain, text[:])
}
