package main

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// lossTable drops one frame of a hundred, at random, that the wires get from a
// host. With offloads on a frame may be a run of dozens of datagrams, so loss
// is measured with offloads off.
const (
	lossTable = "bench-loss"
	lossOneOf = 100
)

func (p *pair) addLoss() error {
	return inSpace(p.lab.Name()+"-wires", func() error {
		conn, err := nftables.New()
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		table := conn.AddTable(&nftables.Table{Name: lossTable, Family: nftables.TableFamilyNetdev})
		for i := range p.ends {
			chain := conn.AddChain(&nftables.Chain{
				Name: p.ends[i].host.Name(), Table: table, Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter, Device: p.ends[i].host.Name(),
			})
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Counter{}, // all
				&expr.Numgen{Register: 1, Type: unix.NFT_NG_RANDOM, Modulus: lossOneOf},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 0, 0, 0}},
				&expr.Counter{}, // the lost
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
		}
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("drop at random: %w", err)
		}
		return nil
	})
}

// removeLoss ends the loss and tells which part of the frames was lost.
func (p *pair) removeLoss() (lost float64, err error) {
	err = inSpace(p.lab.Name()+"-wires", func() error {
		conn, err := nftables.New()
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		table := &nftables.Table{Name: lossTable, Family: nftables.TableFamilyNetdev}
		var seen, dropped uint64
		for i := range p.ends {
			rules, err := conn.GetRules(table, &nftables.Chain{Name: p.ends[i].host.Name(), Table: table})
			if err != nil {
				return fmt.Errorf("read counters of loss: %w", err)
			}
			for _, r := range rules {
				all, ok1 := r.Exprs[0].(*expr.Counter)
				drops, ok2 := r.Exprs[3].(*expr.Counter)
				if ok1 && ok2 {
					seen, dropped = seen+all.Packets, dropped+drops.Packets
				}
			}
		}
		if lost = 0; seen > 0 {
			lost = float64(dropped) / float64(seen)
		}
		conn.DelTable(table)
		return conn.Flush()
	})
	return lost, err
}
