//go:build !amd64

package gcm

import "crypto/cipher"

const vectors = false

func newVector(standard cipher.AEAD, _ cipher.Block, _ *[32]byte) cipher.AEAD { return standard }
