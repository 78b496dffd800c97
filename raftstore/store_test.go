package raftstore

import (
	"context"
	"testing"
)

func TestSingleManagerCommits(t *testing.T) {
	bubble(t, func(c *cluster) {
		m := c.start("n1", true)
		c.update(m, func(tx *Tx) error {
			tx.PutService(Service{Meta: Meta{ID: "s1"}, Name: "web"})
			return nil
		})
		s, err := m.Local().Services.Find("web")
		if err != nil || s.ID != "s1" || s.Version != m.Local().Index() || s.Index != s.Version || s.CreatedAt.IsZero() {
			t.Fatalf("got %+v, %v", s, err)
		}
		state, err := m.View(context.Background())
		if err != nil || state.Services.Len() != 1 {
			t.Fatalf("view: %v", err)
		}
	})
}

func TestFollowerReadsItsOwnWrites(t *testing.T) {
	bubble(t, func(c *cluster) {
		for _, m := range c.form(3) {
			c.update(m, func(tx *Tx) error { return countService(tx, m.id) })
			if _, err := m.Local().Services.Find(m.id); err != nil {
				t.Fatalf("%s: %v", m.id, err)
			}
		}
	})
}
