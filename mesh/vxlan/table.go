package vxlan

// table is what stands in the kernel's tables for one device, and what may have
// to be changed there. Switch.mu guards it.
type table struct {
	set       map[slot]Entry    // in the kernel
	marked    map[slot]struct{} // to be compared with what is wanted
	failed    map[slot]struct{} // the kernel refused: marked again later
	inherited map[slot]struct{} // of set, by an earlier run, and not decided on yet
}

func newTable() table {
	return table{
		set: map[slot]Entry{}, marked: map[slot]struct{}{},
		failed: map[slot]struct{}{}, inherited: map[slot]struct{}{},
	}
}

// load replaces what is known of the kernel's tables.
func (t *table) load(entries []Entry, inherit bool) {
	for x := range t.set {
		t.mark(x)
	}
	clear(t.set)
	clear(t.inherited)
	clear(t.failed)
	t.add(entries, inherit)
}

// reload is load for entries of one kind.
func (t *table) reload(k Kind, entries []Entry, inherit bool) {
	for x := range t.set {
		if x.Kind == k {
			t.mark(x)
			delete(t.set, x)
		}
	}
	t.add(entries, inherit)
}

func (t *table) add(entries []Entry, inherit bool) {
	for _, e := range entries {
		t.set[e.slot()] = e
		t.mark(e.slot())
		if inherit {
			t.inherited[e.slot()] = struct{}{}
		}
	}
}

func (t *table) mark(x slot) { t.marked[x] = struct{}{} }

// retry marks what failed.
func (t *table) retry() {
	for x := range t.failed {
		t.mark(x)
	}
	clear(t.failed)
}

// opinion is what ought to be in a slot.
type opinion struct {
	entry Entry
	want  bool // else there should be none
	// unsure: too little is known yet to change what an earlier run set.
	unsure bool
}

func wanted(e Entry) opinion { return opinion{entry: e, want: true} }

// op is one change of a kernel's table.
type op struct {
	entry  Entry
	remove bool
}

// plan takes the marks off the slots that the caller asks for, and returns what
// has to be changed for them: entries to be set, or if removing is true entries
// to be removed. The marks of others, and of what is to be done the other way,
// stay.
func (t *table) plan(removing bool, pick func(Kind) bool, want func(slot) opinion) []op {
	var ops []op
	for x := range t.marked {
		if !pick(x.Kind) {
			continue
		}
		o := want(x)
		_, inherited := t.inherited[x]
		if inherited && o.unsure {
			delete(t.marked, x) // marked again when more is known
			continue
		}
		is, there := t.set[x]
		switch {
		case o.want == there && (!there || is == o.entry):
			delete(t.marked, x)
			delete(t.inherited, x)
		case o.want && !removing:
			ops = append(ops, op{entry: o.entry})
			delete(t.marked, x)
			delete(t.inherited, x)
		case !o.want && removing:
			ops = append(ops, op{entry: is, remove: true})
			delete(t.marked, x)
			delete(t.inherited, x)
		}
	}
	return ops
}

// done notes what came of an op.
func (t *table) done(o op, err error) {
	x := o.entry.slot()
	switch {
	case err != nil:
		t.failed[x] = struct{}{}
	case o.remove:
		delete(t.set, x)
	default:
		t.set[x] = o.entry
		if o.entry.Kind == Remote {
			t.mark(slot{Kind: Port, MAC: o.entry.MAC}) // it may have waited for this
		}
	}
}
