package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
)

// bbolt believes what the pages of a file say, in part in goroutines of its own,
// where its panics and its reads outside the file end the process. So pages are
// checked here before bbolt sees them: all that can be reached lies inside the
// file, once, in order. The layout is that of bbolt's format version 2, in the
// byte order of the machine (go.etcd.io/bbolt/internal/common).
const (
	headerSize  = 16 // id 8, flags 2, count 2, overflow 4
	elementSize = 16 // branch: offset 4, key 4, page 8; leaf: flags 4, offset 4, key 4, value 4
	bucketSize  = 16 // root 8, sequence 8
	metaSize    = 64

	branchFlag   = 0x01
	leafFlag     = 0x02
	freelistFlag = 0x10
	bucketFlag   = 0x01 // of a leaf's element: its value is a bucket

	metaMagic   = 0xED0CDAED
	metaVersion = 2

	minPageSize = 1 << 10
	maxPageSize = 1 << 24
	manyFree    = 0xFFFF // a count that says: the first element is the count
)

var order = binary.NativeEndian

// pages is a file under check.
type pages struct {
	data     []byte
	pageSize uint64
	seen     []bool // page is part of a tree, of the free list, or free
}

// checkPages returns ErrCorrupt unless data is a file whose pages bbolt can follow.
func checkPages(data []byte) error {
	m, err := newestMeta(data)
	if err != nil {
		return err
	}
	size := uint64(len(data))
	if m.end <= 2 || m.end > size/m.pageSize {
		return fmt.Errorf("%w: file has %d bytes, %d pages of %d", ErrCorrupt, size, m.end, m.pageSize)
	}
	p := &pages{data: data, pageSize: m.pageSize, seen: make([]bool, m.end)}
	p.seen[0], p.seen[1] = true, true // meta
	if err := p.checkFreelist(m.freelist); err != nil {
		return err
	}
	if err := p.checkTree(m.root, nil, nil); err != nil {
		return err
	}
	for id, seen := range p.seen {
		if !seen {
			return fmt.Errorf("%w: page %d is neither used nor free", ErrCorrupt, id)
		}
	}
	return nil
}

// meta is one of the two descriptions of the file, which commits write in turn.
type meta struct {
	pageSize, root, freelist, end, txid uint64
}

// newestMeta returns the meta that bbolt would use: the newer one that is whole.
// The second one is at a place that only the page size tells.
func newestMeta(data []byte) (meta, error) {
	newest, whole := parseMeta(data, 0)
	sizes := []uint64{newest.pageSize}
	if !whole {
		sizes = nil
		for size := uint64(minPageSize); size <= maxPageSize; size <<= 1 {
			sizes = append(sizes, size)
		}
	}
	for _, size := range sizes {
		if size < minPageSize || size > maxPageSize || size&(size-1) != 0 {
			return meta{}, fmt.Errorf("%w: pages of %d bytes", ErrCorrupt, size)
		}
		second, ok := parseMeta(data, size)
		if !ok {
			continue
		}
		if second.pageSize != size {
			return meta{}, fmt.Errorf("%w: pages of %d bytes, the second after %d", ErrCorrupt, second.pageSize, size)
		}
		if !whole || second.txid > newest.txid {
			newest = second
		}
		return newest, nil
	}
	if !whole {
		return meta{}, fmt.Errorf("%w: no description of the file is whole", ErrCorrupt)
	}
	return newest, nil
}

func parseMeta(data []byte, at uint64) (m meta, whole bool) {
	at += headerSize
	if uint64(len(data)) < at+metaSize {
		return meta{}, false
	}
	b := data[at:][:metaSize]
	sum := fnv.New64a()
	_, _ = sum.Write(b[:metaSize-8]) // never fails
	if order.Uint32(b) != metaMagic || order.Uint32(b[4:]) != metaVersion || order.Uint64(b[metaSize-8:]) != sum.Sum64() {
		return meta{}, false
	}
	return meta{
		pageSize: uint64(order.Uint32(b[8:])),
		root:     order.Uint64(b[16:]),
		freelist: order.Uint64(b[32:]),
		end:      order.Uint64(b[40:]),
		txid:     order.Uint64(b[48:]),
	}, true
}

// take returns a page with those it flows over into, and marks them as seen.
func (p *pages) take(id uint64) ([]byte, error) {
	end := uint64(len(p.seen))
	if id >= end {
		return nil, fmt.Errorf("%w: page %d of %d", ErrCorrupt, id, end)
	}
	page := p.data[id*p.pageSize:]
	n := uint64(order.Uint32(page[12:])) + 1
	if order.Uint64(page) != id || n > end-id {
		return nil, fmt.Errorf("%w: page %d says that it is %d and has %d of %d pages", ErrCorrupt, id, order.Uint64(page), n, end)
	}
	for i := id; i < id+n; i++ {
		if err := p.mark(i); err != nil {
			return nil, err
		}
	}
	return page[:n*p.pageSize], nil
}

func (p *pages) mark(id uint64) error {
	if id >= uint64(len(p.seen)) || p.seen[id] {
		return fmt.Errorf("%w: page %d does not exist or has two uses", ErrCorrupt, id)
	}
	p.seen[id] = true
	return nil
}

func (p *pages) checkFreelist(id uint64) error {
	page, err := p.take(id)
	if err != nil {
		return err
	}
	count := uint64(order.Uint16(page[10:]))
	ids := page[headerSize:]
	if count == manyFree {
		count, ids = order.Uint64(ids), ids[8:]
	}
	if order.Uint16(page[8:]) != freelistFlag || count > uint64(len(ids))/8 {
		return fmt.Errorf("%w: page %d is no list of %d free pages", ErrCorrupt, id, count)
	}
	for i := range count {
		if err := p.mark(order.Uint64(ids[8*i:])); err != nil {
			return err
		}
	}
	return nil
}

// checkTree checks the tree below a page: its keys are from lowest on and below
// the limit, where these are not nil.
func (p *pages) checkTree(id uint64, lowest, limit []byte) error {
	page, err := p.take(id)
	if err != nil {
		return err
	}
	switch order.Uint16(page[8:]) {
	case branchFlag:
		return p.checkBranch(id, page, lowest, limit)
	case leafFlag:
		return p.checkLeaf(id, page, lowest, limit)
	}
	return fmt.Errorf("%w: page %d has no place in a tree", ErrCorrupt, id)
}

func (p *pages) checkBranch(id uint64, page, lowest, limit []byte) error {
	n, ok := elements(page)
	if !ok || n == 0 {
		return fmt.Errorf("%w: page %d has no room for %d elements, or none", ErrCorrupt, id, n)
	}
	keys := make([][]byte, n, n+1)
	for i := range keys {
		e := page[headerSize+i*elementSize:]
		key, ok := part(page, i, order.Uint32(e), order.Uint32(e[4:]))
		if !ok || !between(key, lowest, i > 0, limit) {
			return fmt.Errorf("%w: key %d of page %d", ErrCorrupt, i, id)
		}
		keys[i], lowest = key, key
	}
	keys = append(keys, limit)
	for i := range n {
		child := order.Uint64(page[headerSize+i*elementSize+8:])
		if err := p.checkTree(child, keys[i], keys[i+1]); err != nil {
			return err
		}
	}
	return nil
}

func (p *pages) checkLeaf(id uint64, page, lowest, limit []byte) error {
	n, ok := elements(page)
	if !ok {
		return fmt.Errorf("%w: page %d has no room for %d entries", ErrCorrupt, id, n)
	}
	for i := range n {
		e := page[headerSize+i*elementSize:]
		flags, at, keySize, valueSize := order.Uint32(e), order.Uint32(e[4:]), order.Uint32(e[8:]), order.Uint32(e[12:])
		both, ok := part(page, i, at, keySize, valueSize)
		if !ok || flags > bucketFlag || !between(both[:keySize], lowest, i > 0, limit) {
			return fmt.Errorf("%w: entry %d of page %d", ErrCorrupt, i, id)
		}
		lowest = both[:keySize]
		if flags == bucketFlag {
			if err := p.checkBucket(id, both[keySize:]); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkBucket checks what a bucket's value leads to: a tree, or a leaf in itself.
func (p *pages) checkBucket(id uint64, value []byte) error {
	if len(value) < bucketSize {
		return fmt.Errorf("%w: bucket of %d bytes in page %d", ErrCorrupt, len(value), id)
	}
	if root := order.Uint64(value); root != 0 {
		return p.checkTree(root, nil, nil)
	}
	leaf := value[bucketSize:]
	if len(leaf) < headerSize || order.Uint64(leaf) != 0 || order.Uint16(leaf[8:]) != leafFlag {
		return fmt.Errorf("%w: bucket without a leaf in page %d", ErrCorrupt, id)
	}
	return p.checkLeaf(id, leaf, nil, nil)
}

// elements returns how many elements a page says it has, and if they fit.
func elements(page []byte) (n int, ok bool) {
	n = int(order.Uint16(page[10:]))
	return n, n <= (len(page)-headerSize)/elementSize
}

// part returns what lies at an offset, which counts from the i-th element on,
// and has the sum of the sizes.
func part(page []byte, i int, offset uint32, sizes ...uint32) ([]byte, bool) {
	start := uint64(headerSize+i*elementSize) + uint64(offset)
	end := start
	for _, size := range sizes {
		end += uint64(size)
	}
	if end > uint64(len(page)) {
		return nil, false
	}
	return page[start:end], true
}

// between returns if key is from lowest on, or above it, and below the limit.
func between(key, lowest []byte, above bool, limit []byte) bool {
	c := bytes.Compare(key, lowest)
	return len(key) > 0 && (c > 0 || c == 0 && !above) && (limit == nil || bytes.Compare(key, limit) < 0)
}
