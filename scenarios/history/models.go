package history

import (
	"slices"
	"strings"
)

// The models say what one store that does one thing at a time could answer. A change without an answer either takes effect
// where it is put or is put after the end, where it harms nobody: so a search need not try all places for what never happened.

// theEnd is put after all calls that were answered.
type theEnd struct{}

// register is the state of a register.
type register struct {
	value string
	// version of the value, or when it was not told a number that it is greater than.
	version uint64
	told    bool
	ended   bool
}

// may says whether the version can be v.
func (s register) may(v uint64) bool {
	if s.told {
		return s.version == v
	}
	return v > s.version
}

func (s register) step(input, output any) (bool, register) {
	switch in := input.(type) {
	case theEnd:
		s.ended = true
		return true, s
	case Read:
		return s.read(output.(Value))
	case Write:
		return s.write(in, output)
	}
	return false, s
}

func (s register) read(out Value) (bool, register) {
	if out.Value != s.value {
		return false, s
	}
	if out.Version == 0 {
		return true, s
	}
	if !s.may(out.Version) {
		return false, s
	}
	s.version, s.told = out.Version, true
	return true, s
}

func (s register) write(in Write, output any) (bool, register) {
	matches := in.IfVersion == 0 || s.may(in.IfVersion)
	after := register{value: in.Value, version: max(s.version, in.IfVersion), ended: s.ended}
	tell := func(version uint64) bool {
		if version == 0 {
			return true
		}
		grows := version > after.version
		after.version, after.told = version, true
		return grows
	}
	switch out := output.(type) {
	case Written:
		return matches && tell(out.Version), after
	case Conflict:
		return in.IfVersion != 0 && !(s.told && s.version == in.IfVersion), s
	case unknown:
		if s.ended {
			return true, s
		}
		return matches && tell(out.version), after
	}
	return false, s
}

// set is the state of a set: sorted lines "name id", in one string so that states can be compared.
type set struct {
	members string
	ended   bool
}

func (s set) decode() Members {
	members := Members{}
	for line := range strings.Lines(s.members) {
		name, id, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		members[name] = id
	}
	return members
}

func (s set) with(members Members) set {
	var lines []string
	for name, id := range members {
		lines = append(lines, name+"\t"+id+"\n")
	}
	slices.Sort(lines)
	s.members = strings.Join(lines, "")
	return s
}

func (s set) step(input, output any) (bool, set) {
	members := s.decode()
	switch in := input.(type) {
	case theEnd:
		s.ended = true
		return true, s
	case List:
		return s.list(members, output.(Members))
	case Add:
		return s.add(members, in, output)
	case Remove:
		return s.remove(members, in, output)
	}
	return false, s
}

func (s set) list(members, out Members) (bool, set) {
	if len(out) != len(members) {
		return false, s
	}
	for name, id := range out {
		have, ok := members[name]
		if !ok || !same(have, id) {
			return false, s
		}
		if id != "" {
			members[name] = id
		}
	}
	return true, s.with(members)
}

// same says whether two ids can be one; empty: not told.
func same(a, b string) bool { return a == "" || b == "" || a == b }

func (s set) add(members Members, in Add, output any) (bool, set) {
	_, taken := members[in.Name]
	switch out := output.(type) {
	case Added:
		members[in.Name] = out.ID
		return !taken, s.with(members)
	case Conflict:
		return taken, s
	case unknown:
		if s.ended {
			return true, s
		}
		members[in.Name] = ""
		return !taken, s.with(members)
	}
	return false, s
}

func (s set) remove(members Members, in Remove, output any) (bool, set) {
	id, there := members[in.Name]
	there = there && same(id, in.ID)
	few := len(members)-1 < in.Floor
	switch output.(type) {
	case Absent:
		// An id that was not told may be another one.
		return !there || in.ID != "" && id == "", s
	case TooFew:
		return there && few, s
	case unknown:
		if s.ended {
			return true, s
		}
	}
	delete(members, in.Name)
	return there && !few, s.with(members)
}
