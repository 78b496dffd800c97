package spec

import "github.com/moby/moby/api/types/swarm"

// The predefined networks exist on every node and are never created. A service may attach one of them by name or id.
const (
	HostNetwork   = "host"
	NoneNetwork   = "none"
	HostNetworkID = "hostnetwork00000000000000"
	NoneNetworkID = "nonenetwork00000000000000"
)

// NetworkMode is "host" when the spec attaches the predefined host network, else "none".
func NetworkMode(s swarm.TaskSpec) string {
	for _, n := range s.Networks {
		if n.Target == HostNetwork || n.Target == HostNetworkID {
			return HostNetwork
		}
	}
	return NoneNetwork
}

func validateNetworks(networks []swarm.NetworkAttachmentConfig) error {
	for _, n := range networks {
		switch n.Target {
		case HostNetwork, HostNetworkID, NoneNetwork, NoneNetworkID:
		default:
			return missing("network %q cannot be attached: overlay networks are not there yet; use --network host, or leave it out for a container with loopback only", n.Target)
		}
		if len(n.Aliases) > 0 {
			return missing("network aliases are not there yet: they need overlay networks; remove the alias of network %s", n.Target)
		}
		if len(n.DriverOpts) > 0 {
			return invalid("network %s takes no driver options; remove them", n.Target)
		}
	}
	if len(networks) > 1 {
		return invalid("a service attaches at most one of the predefined networks host and none; remove all but one of %d", len(networks))
	}
	return nil
}
