//go:build race

package transport

// poolForgets is set where what a sync.Pool gives is new now and then: the race
// detector has it forget at random.
const poolForgets = true
