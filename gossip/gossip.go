// Package gossip tracks which nodes are alive, also when no manager can be reached, on memberlist.
// agent runs it and shows its members.
package gossip

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/memberlist"
)

const (
	keyBytes = 32
	// keysMax bounds the keys that are understood: the current one and the one before.
	keysMax = 2
	// leaveTimeout bounds each of the two steps of leaving: saying so, and being heard.
	leaveTimeout = time.Second
	// joinEvery is how often missing seeds are tried, joinMax how many at once.
	joinEvery = 5 * time.Second
	joinMax   = 3
	// introductions is how often, joinEvery, a node that has started joins one more seed: others refuse a new address while they
	// take the former one for alive, and would hear of it again only with the next exchange of full state.
	introductions = 6
	// reclaimAfter is how long a dead node's name is kept from a node with another address: not at all, which
	// the library cannot be told otherwise. While the old one counts as alive, the new one is refused.
	reclaimAfter = time.Millisecond
	// streamTimeout bounds one exchange of full state.
	streamTimeout = 5 * time.Second
)

// Config is what gossip needs. Key is the cluster's 32 bytes; addresses are host or host:port, of which only the host counts.
type Config struct {
	NodeID string
	// ClusterID keeps clusters apart: packets and members of another one are ignored.
	ClusterID string
	// BindAddr is an IP address; empty: all addresses.
	BindAddr string
	// AdvertiseAddr is the IP address at which others reach this node; empty: BindAddr.
	AdvertiseAddr string
	Port          int
	Key           []byte
	// Network is nil for the real one.
	Network Network
	Log     *slog.Logger
}

// Gossip is this node's membership.
type Gossip struct {
	cfg       Config
	bind      net.IP
	advertise net.IP
	keys      *memberlist.Keyring
	members   *members
	log       *slog.Logger

	mu    sync.Mutex
	seeds []string

	seedsChanged chan struct{}
}

// New checks cfg; nothing is opened before Run.
func New(cfg Config) (*Gossip, error) {
	if cfg.NodeID == "" || len(cfg.NodeID) > nameBytesMax {
		return nil, fmt.Errorf("node id %q cannot be a gossip name: %w", cfg.NodeID, errdefs.ErrInvalidArgument)
	}
	if len(cfg.ClusterID) > memberlist.LabelMaxSize {
		return nil, fmt.Errorf("cluster id %q is too long for gossip: %w", cfg.ClusterID, errdefs.ErrInvalidArgument)
	}
	if len(cfg.Key) != keyBytes {
		return nil, fmt.Errorf("gossip key has %d bytes instead of %d: %w", len(cfg.Key), keyBytes, errdefs.ErrInvalidArgument)
	}
	bind, advertise, err := addresses(cfg)
	if err != nil {
		return nil, err
	}
	keys, err := memberlist.NewKeyring(nil, cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("gossip key: %w", err)
	}
	if cfg.Network == nil {
		cfg.Network = Kernel{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	log := cfg.Log.With("component", "gossip")
	return &Gossip{cfg: cfg, bind: bind, advertise: advertise, keys: keys, log: log,
		members: newMembers(cfg, log), seedsChanged: make(chan struct{}, 1)}, nil
}

func addresses(cfg Config) (bind, advertise net.IP, err error) {
	if cfg.Port <= 0 || cfg.Port > 65535 {
		return nil, nil, fmt.Errorf("gossip port %d is not a port: %w", cfg.Port, errdefs.ErrInvalidArgument)
	}
	bind = net.IPv4zero
	if host := hostOf(cfg.BindAddr); host != "" {
		if bind = net.ParseIP(host); bind == nil {
			return nil, nil, fmt.Errorf("gossip bind address %q is not an IP address: %w", cfg.BindAddr, errdefs.ErrInvalidArgument)
		}
	}
	advertise = bind
	if host := hostOf(cfg.AdvertiseAddr); host != "" {
		advertise = net.ParseIP(host)
	}
	if advertise == nil || advertise.IsUnspecified() {
		return nil, nil, fmt.Errorf("gossip needs an IP address at which others reach this node, not %q; set the advertise address: %w", cfg.AdvertiseAddr, errdefs.ErrInvalidArgument)
	}
	if v4 := advertise.To4(); v4 != nil {
		advertise = v4
	} else if bind.IsUnspecified() {
		bind = net.IPv6unspecified
	}
	return bind, advertise, nil
}

// hostOf takes host:port or a host.
func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// Run lives until ctx ends, then leaves (within 2 s). A port that is taken ends it with an error.
func (g *Gossip) Run(ctx context.Context) error {
	transport, err := openTransport(ctx, g.cfg.Network, g.advertise, net.JoinHostPort(g.bind.String(), strconv.Itoa(g.cfg.Port)))
	if err != nil {
		return err
	}
	list, err := memberlist.Create(g.libraryConfig(transport))
	if err != nil {
		_ = transport.Shutdown()
		return fmt.Errorf("start gossip: %w", err)
	}
	g.keepJoined(ctx, list)
	g.leave(list)
	return nil
}

func (g *Gossip) libraryConfig(transport *transport) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = g.cfg.NodeID
	c.Label = g.cfg.ClusterID
	c.Transport = transport
	c.AdvertiseAddr = g.advertise.String()
	c.AdvertisePort = g.cfg.Port
	c.BindPort = g.cfg.Port
	c.Keyring = g.keys
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	c.EnableCompression = false
	c.DeadNodeReclaimTime = reclaimAfter
	c.TCPTimeout = streamTimeout
	c.Delegate, c.Events, c.Alive = g.members, g.members, g.members
	c.Logger = libraryLog(g.log)
	return c
}

// keepJoined returns when ctx ends.
func (g *Gossip) keepJoined(ctx context.Context, list *memberlist.Memberlist) {
	ticker := time.NewTicker(joinEvery)
	defer ticker.Stop()
	for introduced := 0; ; {
		missing := g.missingSeeds()
		if introduced < introductions {
			missing = append(missing, g.anySeed()...)
		}
		if len(missing) > 0 {
			if _, err := list.Join(missing); err != nil && ctx.Err() == nil {
				g.log.Debug("seeds not reached", "seeds", missing, "error", err)
			}
		}
		select {
		case <-ticker.C:
			introduced++
		case <-g.seedsChanged:
		case <-ctx.Done():
			return
		}
	}
}

// leave says good-bye, so that others see a node that left and not one that died.
func (g *Gossip) leave(list *memberlist.Memberlist) {
	g.members.leaving.Store(true)
	if err := list.UpdateNode(leaveTimeout); err != nil {
		g.log.Debug("leave not announced", "error", err)
	}
	if err := list.Leave(leaveTimeout); err != nil {
		g.log.Debug("leave not heard", "error", err)
	}
	// It only fails where the transport does, which never does.
	_ = list.Shutdown()
}

// SetSeeds gives addresses (IP address:port) of other members; whenever this node sees fewer members than seeds it tries to join them again.
func (g *Gossip) SetSeeds(addresses []string) {
	own := net.JoinHostPort(g.advertise.String(), strconv.Itoa(g.cfg.Port))
	var others []string
	for _, address := range addresses {
		if _, err := packetAddress(address); err != nil {
			g.log.Warn("seed ignored", "seed", address, "error", err)
		} else if address != own {
			others = append(others, address)
		}
	}
	g.mu.Lock()
	g.seeds = others
	g.mu.Unlock()
	select {
	case g.seedsChanged <- struct{}{}:
	default:
	}
}

// SetKey makes key the one that packets are sealed with; the key before it is still understood.
func (g *Gossip) SetKey(key []byte) error {
	if len(key) != keyBytes {
		return fmt.Errorf("gossip key has %d bytes instead of %d: %w", len(key), keyBytes, errdefs.ErrInvalidArgument)
	}
	if err := g.keys.AddKey(key); err != nil {
		return fmt.Errorf("add gossip key: %w", err)
	}
	if err := g.keys.UseKey(key); err != nil {
		return fmt.Errorf("use gossip key: %w", err)
	}
	// The primary key comes first, then the older ones in the order of their use.
	for _, old := range g.keys.GetKeys()[min(keysMax, len(g.keys.GetKeys())):] {
		if err := g.keys.RemoveKey(old); err != nil {
			return fmt.Errorf("forget gossip key: %w", err)
		}
	}
	return nil
}

// missingSeeds are some that are not seen alive, while fewer members than seeds are.
func (g *Gossip) missingSeeds() []string {
	g.mu.Lock()
	seeds := g.seeds
	g.mu.Unlock()
	alive := g.members.aliveAddresses()
	if len(alive) >= len(seeds) {
		return nil
	}
	var missing []string
	for _, seed := range shuffled(seeds) {
		if !alive[seed] && len(missing) < joinMax {
			missing = append(missing, seed)
		}
	}
	return missing
}

// anySeed is one of the seeds, or none.
func (g *Gossip) anySeed() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return shuffled(g.seeds)[:min(1, len(g.seeds))]
}

// Members are all nodes seen, this one included, in order of their ids; empty before Run.
func (g *Gossip) Members() []Member { return g.members.list() }
