//go:build race

package transport

// A sync.Pool forgets at random under the race detector.
func init() { poolForgets = true }
