package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"weave/test/bench/report"
)

// lossTable drops frames, at random, that the wires get from a host.
const lossTable = "bench-loss"

// measureHard measures TCP on wires that lose or delay frames, of the sealed path
// and of WireGuard: the systems take turns from sample to sample.
func (b *bench) measureHard(ctx context.Context) error {
	pairs := slices.DeleteFunc(slices.Clone(b.pairs), func(p running) bool { return !p.lossy })
	for _, p := range pairs {
		if err := p.setOffloads(false); err != nil {
			return err
		}
	}
	for round := range b.rounds {
		for _, h := range report.HardModes() {
			for i := range h.Samples {
				for _, p := range pairs {
					if err := b.hardOne(ctx, p, h, round*h.Samples+i); err != nil {
						return fmt.Errorf("%s, %s: %w", p.title, h.Title, err)
					}
				}
			}
		}
	}
	return nil
}

// hardOne takes one sample.
func (b *bench) hardOne(ctx context.Context, p running, h report.Hard, sample int) error {
	from := sample % 2
	if err := p.harden(h); err != nil {
		return errors.Join(err, p.soften())
	}
	out, err := b.persist(ctx, p, func() ([]figure, error) { return p.tcp(ctx, from, h.Streams, 2*b.window, hardWarm) })
	part, counted := p.lost()
	if err := errors.Join(err, counted, p.soften()); err != nil {
		return err
	}
	b.result.Add(report.Sample{
		System: p.name, Mode: h.Mode, Measure: report.TCP1, Way: fmt.Sprintf("h%d", from+1), Round: sample, Value: out[0].value / float64(h.Streams),
	})
	b.say("%s, sample %d, %s: %.4g Mbit/s (%.2f %% of the frames lost)", h.Title, sample+1, p.name, out[0].value/float64(h.Streams), 100*part)
	return nil
}

// harden makes the wires lose, or delay, what either host sends. Both are done by
// the kernel of the wires, alike for all systems; what is late waits in this process.
func (p *pair) harden(h report.Hard) error {
	if h.LateOneOf > 0 {
		for i := range p.ends {
			d, err := p.ends[i].host.DelaySome(1/float64(h.LateOneOf), h.Late)
			if err != nil {
				return err
			}
			p.delays = append(p.delays, d)
		}
	}
	if h.LoseOneOf == 0 {
		return nil
	}
	return inSpace(p.lab.Name()+"-wires", func() error {
		conn, err := nftables.New()
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		table := conn.AddTable(lossOf())
		for i := range p.ends {
			chain := conn.AddChain(&nftables.Chain{
				Name: p.ends[i].host.Name(), Table: table, Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter, Device: p.ends[i].host.Name(),
			})
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Counter{}, // all
				&expr.Numgen{Register: 1, Type: unix.NFT_NG_RANDOM, Modulus: h.LoseOneOf},
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

func lossOf() *nftables.Table {
	return &nftables.Table{Name: lossTable, Family: nftables.TableFamilyNetdev}
}

// lost tells which part of the frames was lost since harden.
func (p *pair) lost() (part float64, err error) {
	err = inSpace(p.lab.Name()+"-wires", func() error {
		conn, err := nftables.New()
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		tables, err := conn.ListTablesOfFamily(nftables.TableFamilyNetdev)
		if err != nil || !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == lossTable }) {
			return err
		}
		var seen, dropped uint64
		for i := range p.ends {
			rules, err := conn.GetRules(lossOf(), &nftables.Chain{Name: p.ends[i].host.Name(), Table: lossOf()})
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
		if seen > 0 {
			part = float64(dropped) / float64(seen)
		}
		return nil
	})
	return part, err
}

// soften makes the wires good again.
func (p *pair) soften() error {
	var errs []error
	for _, d := range p.delays {
		errs = append(errs, d.Stop())
	}
	p.delays = nil
	return errors.Join(append(errs, inSpace(p.lab.Name()+"-wires", func() error {
		conn, err := nftables.New()
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		conn.AddTable(lossOf()) // so that deleting it cannot fail
		conn.DelTable(lossOf())
		return conn.Flush()
	}))...)
}
