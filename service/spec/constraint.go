package spec

import (
	"net/netip"
	"regexp"
	"strings"

	"github.com/moby/moby/api/types/swarm"
)

// Constraint is one parsed placement constraint.
type Constraint struct {
	Key, Value string
	Equal      bool
}

// Facts are what constraints and platforms are matched against: one node as operator and engine describe it.
type Facts struct {
	ID, Hostname string
	// IP is the node's address, without port.
	IP           string
	Role         swarm.NodeRole
	Platform     swarm.Platform
	Labels       map[string]string
	EngineLabels map[string]string
}

var (
	constraintKey   = regexp.MustCompile(`^(?i)[a-z_][a-z0-9\-_.]+$`)
	constraintValue = regexp.MustCompile(`^(?i)[a-z0-9:\-_\s\.\*\(\)\?\+\[\]\\\^\$\|\/]+$`)
)

// ParseConstraints reads node.X==y and node.X!=y expressions. Key names ignore case, label names do not.
func ParseConstraints(exprs []string) ([]Constraint, error) {
	if len(exprs) == 0 {
		return nil, nil
	}
	parsed := make([]Constraint, 0, len(exprs))
	for _, e := range exprs {
		c, err := parseConstraint(e)
		if err != nil {
			return nil, err
		}
		parsed = append(parsed, c)
	}
	return parsed, nil
}

func parseConstraint(expr string) (Constraint, error) {
	var c Constraint
	key, value, ok := strings.Cut(expr, "==")
	if equal, unequal := strings.Index(expr, "=="), strings.Index(expr, "!="); unequal >= 0 && (equal < 0 || unequal < equal) {
		key, value, ok = strings.Cut(expr, "!=")
	} else {
		c.Equal = true
	}
	if !ok {
		return c, invalid("constraint expected one operator from ==, !=: %q; write for example node.labels.zone==east", expr)
	}
	c.Key, c.Value = strings.TrimSpace(key), strings.TrimSpace(value)
	if !constraintKey.MatchString(c.Key) {
		return c, invalid("key '%s' is invalid in constraint %q", c.Key, expr)
	}
	if !constraintValue.MatchString(c.Value) {
		return c, invalid("value '%s' is invalid in constraint %q", c.Value, expr)
	}
	return c, nil
}

const (
	nodeLabelPrefix   = "node.labels."
	engineLabelPrefix = "engine.labels."
)

// Match says whether a node satisfies c. Values ignore case, a missing label equals the empty string, an unknown key matches no node.
func (c Constraint) Match(f *Facts) bool {
	switch {
	case hasPrefixFold(c.Key, nodeLabelPrefix):
		return c.is(f.Labels[c.Key[len(nodeLabelPrefix):]])
	case hasPrefixFold(c.Key, engineLabelPrefix):
		return c.is(f.EngineLabels[c.Key[len(engineLabelPrefix):]])
	}
	switch strings.ToLower(c.Key) {
	case "node.id":
		return c.is(f.ID)
	case "node.hostname":
		return c.is(f.Hostname)
	case "node.ip":
		return c.matchIP(f.IP)
	case "node.role":
		return c.is(string(f.Role))
	case "node.platform.os":
		return c.is(f.Platform.OS)
	case "node.platform.arch":
		return c.is(Architecture(f.Platform.Architecture)) || c.Equal && c.is(f.Platform.Architecture)
	}
	return false
}

// MatchAll says whether a node satisfies every constraint.
func MatchAll(constraints []Constraint, f *Facts) bool {
	for _, c := range constraints {
		if !c.Match(f) {
			return false
		}
	}
	return true
}

func (c Constraint) is(value string) bool { return strings.EqualFold(c.Value, value) == c.Equal }

// matchIP compares with an address, or with a prefix such as 10.1.0.0/16. A value that is neither matches no node.
func (c Constraint) matchIP(ip string) bool {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return false
	}
	if want, err := netip.ParseAddr(c.Value); err == nil {
		return (want.Unmap() == addr.Unmap()) == c.Equal
	}
	prefix, err := netip.ParsePrefix(c.Value)
	return err == nil && prefix.Contains(addr.Unmap()) == c.Equal
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) > len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// Architecture is Go's name of an architecture that a kernel may call otherwise.
func Architecture(a string) string {
	switch strings.ToLower(a) {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return strings.ToLower(a)
}

// MatchPlatform says whether an image made for platforms runs on a node. No platforms, and empty fields, match every node.
func MatchPlatform(platforms []swarm.Platform, f *Facts) bool {
	if len(platforms) == 0 {
		return true
	}
	for _, p := range platforms {
		osFits := p.OS == "" || strings.EqualFold(p.OS, f.Platform.OS)
		archFits := p.Architecture == "" || Architecture(p.Architecture) == Architecture(f.Platform.Architecture)
		if osFits && archFits {
			return true
		}
	}
	return false
}
