//go:build !race

package transport

const poolForgets = false
