package gcm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// pair returns the package's AEAD and the standard library's of one key.
func pair(t testing.TB, key [32]byte) (ours, standard cipher.AEAD) {
	t.Helper()
	ours, err := New(&key)
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(key[:])
	if err != nil {
		t.Fatal(err)
	}
	if standard, err = cipher.NewGCM(block); err != nil {
		t.Fatal(err)
	}
	return ours, standard
}

// needVectors skips where the package is only the standard library.
func needVectors(t testing.TB) {
	t.Helper()
	if !vectors {
		t.Skip("this CPU has no AVX-512 with VAES and VPCLMULQDQ")
	}
}

func randomBytes(r *rand.ChaCha8, n int) []byte {
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

// check seals and opens in place, with guards around, and compares all with
// the standard library.
func check(t interface{ Fatalf(string, ...any) }, ours, standard cipher.AEAD, header, nonce, text []byte) {
	const guard = 256
	n := len(text)
	room := bytes.Repeat([]byte{0xa5}, guard+n+tagLen+guard)
	b := room[guard : guard+n+tagLen]
	whole := func() bool {
		edge := bytes.Repeat([]byte{0xa5}, guard)
		return bytes.Equal(room[:guard], edge) && bytes.Equal(room[guard+n+tagLen:], edge)
	}
	copy(b, text)
	want := standard.Seal(nil, nonce, text, header)
	got := ours.Seal(b[:0], nonce, b[:n], header)
	if !bytes.Equal(got, want) || &got[0] != &b[0] || !whole() {
		t.Fatalf("sealed %d bytes otherwise", n)
	}
	plain, err := ours.Open(got[:0], nonce, got, header)
	if err != nil || !bytes.Equal(plain, text) || !whole() {
		t.Fatalf("opened %d bytes otherwise: %v", n, err)
	}
}

func TestAllLengths(t *testing.T) {
	needVectors(t)
	r := rand.NewChaCha8([32]byte{1})
	for n := 0; n <= 2200; n++ {
		ours, standard := pair(t, [32]byte(randomBytes(r, 32)))
		check(t, ours, standard, randomBytes(r, headerLen), randomBytes(r, nonceLen), randomBytes(r, n))
	}
}

// TestAgainstStandard draws what random bytes would never hit: blocks of zeros
// and ones, long texts, other forms of calls.
func TestAgainstStandard(t *testing.T) {
	block := rapid.OneOf(rapid.SliceOfN(rapid.Byte(), 16, 16), rapid.Just(make([]byte, 16)), rapid.Just(bytes.Repeat([]byte{0xff}, 16)))
	rapid.Check(t, func(rt *rapid.T) {
		key := append(block.Draw(rt, "key"), block.Draw(rt, "key")...)
		ours, standard := pair(t, [32]byte(key))
		var text []byte
		for range rapid.IntRange(0, 300).Draw(rt, "blocks") {
			text = append(text, block.Draw(rt, "block")...)
		}
		text = text[:len(text)-min(len(text), rapid.IntRange(0, 15).Draw(rt, "cut"))]
		header := rapid.OneOf(block, rapid.SliceOfN(rapid.Byte(), 0, 40)).Draw(rt, "header")
		check(rt, ours, standard, header, block.Draw(rt, "nonce")[:nonceLen], text)
	})
}

// TestForged: whichever bit is changed, nothing is opened and nothing is left.
func TestForged(t *testing.T) {
	r := rand.NewChaCha8([32]byte{2})
	for _, n := range []int{1, 15, 16, 255, 256, 257, 600} {
		ours, _ := pair(t, [32]byte(randomBytes(r, 32)))
		header, nonce, text := randomBytes(r, headerLen), randomBytes(r, nonceLen), randomBytes(r, n)
		sealed := ours.Seal(nil, nonce, text, header)
		for _, part := range [][]byte{sealed, header, nonce} {
			for bit := range len(part) * 8 {
				part[bit/8] ^= 1 << (bit % 8)
				b := bytes.Clone(sealed)
				plain, err := ours.Open(b[:0], nonce, b, header)
				if err == nil || plain != nil || !bytes.Equal(b[:n], make([]byte, n)) {
					t.Fatalf("%d bytes, bit %d changed: %x, %v", n, bit, plain, err)
				}
				part[bit/8] ^= 1 << (bit % 8)
			}
		}
	}
}

// TestFasterPathIsChosen verifies that it is the one under test, and that it is
// not used where it computes something else.
func TestFasterPathIsChosen(t *testing.T) {
	needVectors(t)
	ours, standard := pair(t, [32]byte{1})
	other, _ := pair(t, [32]byte{2})
	if fmt.Sprintf("%T", ours) == fmt.Sprintf("%T", standard) {
		t.Error("it is the standard library's")
	}
	if !agree(ours, standard) || agree(other, standard) {
		t.Error("the comparison of both is wrong")
	}
}

func TestShort(t *testing.T) {
	ours, _ := pair(t, [32]byte{})
	for n := range tagLen {
		b := make([]byte, n)
		if _, err := ours.Open(b[:0], make([]byte, nonceLen), b, make([]byte, headerLen)); err == nil {
			t.Errorf("opened %d bytes", n)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	ours, _ := pair(t, [32]byte{})
	header, b := make([]byte, headerLen), make([]byte, 1400)
	allocs := testing.AllocsPerRun(100, func() {
		sealed := ours.Seal(b[:0], header[4:], b[:len(b)-tagLen], header)
		if _, err := ours.Open(sealed[:0], header[4:], sealed, header); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func FuzzAgainstStandard(f *testing.F) {
	f.Add([]byte("key"), []byte("header"), []byte("text"))
	f.Add(bytes.Repeat([]byte{0xff}, 32), bytes.Repeat([]byte{0xff}, 16), make([]byte, 1000))
	f.Fuzz(func(t *testing.T, key, header, text []byte) {
		var k [32]byte
		var h [headerLen]byte
		copy(k[:], key)
		copy(h[:], header)
		ours, standard := pair(t, k)
		check(t, ours, standard, h[:], h[4:], text)
	})
}

func BenchmarkSeal(b *testing.B) {
	ours, standard := pair(b, [32]byte{})
	for _, n := range []int{64, 1420} {
		for name, aead := range map[string]cipher.AEAD{"ours": ours, "standard": standard} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				header, buf := make([]byte, headerLen), make([]byte, n+tagLen)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					aead.Seal(buf[:0], header[4:], buf[:n], header)
				}
			})
		}
	}
}
