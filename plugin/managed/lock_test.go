package managed

import (
	"context"
	"errors"
	"testing"
)

// TestLock: one command at a time, and the next as soon as it has ended.
func TestLock(t *testing.T) {
	b := newBed(t)
	release, err := b.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Lock(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("locked twice: %v", err)
	}
	got := make(chan error)
	go func() {
		next, err := b.Lock(t.Context())
		if err == nil {
			next()
		}
		got <- err
	}()
	release()
	if err := <-got; err != nil {
		t.Error(err)
	}
}
