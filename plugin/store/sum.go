package store

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"

	"go.etcd.io/bbolt"
)

// bbolt has no checksum over data pages. So each value is followed by one over
// its key and itself, and each bucket has a digest of them all: a damaged page
// can neither change an entry nor lose one unnoticed.

// sumSize is the length of the checksum behind a value, in bytes.
const sumSize = 4

func checksum(key, value []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(key, table), table, value)
}

// seal returns a copy of value with its checksum behind it.
func seal(key, value []byte) []byte {
	sealed := make([]byte, 0, len(value)+sumSize)
	sealed = append(sealed, value...)
	return binary.BigEndian.AppendUint32(sealed, checksum(key, value))
}

// unseal returns a copy of the value in sealed, or ErrCorrupt.
func unseal(key, sealed []byte) ([]byte, error) {
	n := len(sealed) - sumSize
	if n < 0 || binary.BigEndian.Uint32(sealed[n:]) != checksum(key, sealed[:n]) {
		return nil, fmt.Errorf("%w: checksum of key %q does not match", ErrCorrupt, key)
	}
	return append([]byte{}, sealed[:n]...), nil
}

// digest sums up the entries of a bucket, whatever their order.
type digest struct {
	count uint32
	sums  uint32 // all checksums, XORed
}

func (d *digest) add(sealed []byte)    { d.count++; d.sums ^= tail(sealed) }
func (d *digest) remove(sealed []byte) { d.count--; d.sums ^= tail(sealed) }

func tail(sealed []byte) uint32 {
	return binary.BigEndian.Uint32(sealed[len(sealed)-sumSize:])
}

// loadDigest returns the digest of a bucket; that of a new one is zero.
func loadDigest(tx *bbolt.Tx, bucket string) (digest, error) {
	key := []byte(digestPrefix + bucket)
	sealed := tx.Bucket([]byte(metaBucket)).Get(key)
	if sealed == nil {
		return digest{}, nil
	}
	return parseDigest(key, sealed)
}

// loadDigests returns those of all buckets ever written.
func loadDigests(tx *bbolt.Tx) (map[string]digest, error) {
	digests := map[string]digest{}
	err := tx.Bucket([]byte(metaBucket)).ForEach(func(key, sealed []byte) error {
		bucket, ok := strings.CutPrefix(string(key), digestPrefix)
		if !ok {
			return nil
		}
		d, err := parseDigest(key, sealed)
		digests[bucket] = d
		return err
	})
	return digests, err
}

func parseDigest(key, sealed []byte) (digest, error) {
	v, err := unseal(key, sealed)
	if err != nil {
		return digest{}, err
	}
	if len(v) != 8 {
		return digest{}, fmt.Errorf("%w: %q has %d bytes", ErrCorrupt, key, len(v))
	}
	return digest{count: binary.BigEndian.Uint32(v), sums: binary.BigEndian.Uint32(v[4:])}, nil
}

func (d digest) save(tx *bbolt.Tx, bucket string) error {
	key := []byte(digestPrefix + bucket)
	v := binary.BigEndian.AppendUint32(nil, d.count)
	v = binary.BigEndian.AppendUint32(v, d.sums)
	return tx.Bucket([]byte(metaBucket)).Put(key, seal(key, v))
}
