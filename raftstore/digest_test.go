package raftstore

import "testing"

func TestDigestsDifferExactlyWhenRowsDo(t *testing.T) {
	digest := func(rows ...row) [32]byte {
		s := newState()
		for _, r := range rows {
			switch r.(type) {
			case *Node:
				s.Nodes.put(r)
			case *Service:
				s.Services.put(r)
			}
		}
		sum, err := s.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	node := func(address string) *Node { return &Node{Meta: Meta{ID: "n1"}, Address: address} }
	service := &Service{Meta: Meta{ID: "s1"}, Name: "web"}
	same := digest(node("a"), service)
	if digest(service, node("a")) != same {
		t.Error("the order of writes counts")
	}
	for name, other := range map[string][32]byte{"a field": digest(node("b"), service), "a missing row": digest(node("a")), "no rows": digest()} {
		if other == same {
			t.Errorf("%s makes no difference", name)
		}
	}
}
