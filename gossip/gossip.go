// Package gossip tracks which nodes are alive, also when no manager can be reached, on memberlist.
// agent runs it and shows its members.
package gossip

import (
	"context"
	"log/slog"
)

// Config is what gossip needs. Key is the cluster's 32 bytes; addresses are host:port.
type Config struct {
	NodeID        string
	BindAddr      string
	AdvertiseAddr string
	Port          int
	Key           []byte
	Log           *slog.Logger
}

// Gossip is this node's membership.
type Gossip struct{}

func New(cfg Config) (*Gossip, error) { panic("contract") }

// Run lives until ctx ends, then leaves (bounded time).
func (g *Gossip) Run(ctx context.Context) error { panic("contract") }

// SetSeeds gives addresses (host:port) of other members; whenever this node sees fewer members than seeds it tries to join them again.
func (g *Gossip) SetSeeds(addresses []string) { panic("contract") }

// Members are all nodes seen, this one included.
func (g *Gossip) Members() []Member { panic("contract") }

// Member is one node.
type Member struct {
	NodeID  string
	Address string // host:port
	State   string // alive, suspect, dead or left
}
