package agent

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	defaultPort       = "2377"
	defaultListenAddr = "0.0.0.0:" + defaultPort
)

// resolveListen completes a listen address: an interface's name stands for its address, a missing port for 2377.
func resolveListen(listen string) (string, error) {
	if listen == "" {
		return defaultListenAddr, nil
	}
	host, port := splitPort(listen)
	if host == "" {
		host = "0.0.0.0"
	}
	ip, err := hostAddress(host)
	if err != nil {
		return "", fmt.Errorf("listen address %q: %w", listen, err)
	}
	return net.JoinHostPort(ip.String(), port), nil
}

// resolveAdvertise decides at which host:port the others reach this node: as asked, else the listen
// address if it is a definite one, else the machine's only address.
func resolveAdvertise(advertise, listen string) (string, error) {
	listenHost, listenPort := splitPort(listen)
	if advertise != "" {
		host, port := advertise, listenPort
		if h, p, err := net.SplitHostPort(advertise); err == nil {
			host, port = h, p
		}
		ip, err := hostAddress(host)
		if err != nil {
			return "", fmt.Errorf("advertise address %q: %w", advertise, err)
		}
		if ip.IsUnspecified() {
			return "", errdefs.ErrInvalidArgument.WithMessage("advertise address must be a non-zero IP address or network interface (with optional port number)")
		}
		return net.JoinHostPort(ip.String(), port), nil
	}
	if ip, err := netip.ParseAddr(listenHost); err == nil && !ip.IsUnspecified() {
		return net.JoinHostPort(ip.String(), listenPort), nil
	}
	ip, err := onlyAddress()
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(ip.String(), listenPort), nil
}

func splitPort(address string) (host, port string) {
	if h, p, err := net.SplitHostPort(address); err == nil {
		return h, p
	}
	return strings.Trim(address, "[]"), defaultPort
}

// hostAddress reads an IP address or takes the first one of the interface with that name, IPv4 before IPv6.
func hostAddress(host string) (netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip, nil
	}
	i, err := net.InterfaceByName(host)
	if err != nil {
		return netip.Addr{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%q is neither an IP address nor a network interface of this machine", host))
	}
	ips := interfaceAddresses(*i)
	if len(ips) == 0 {
		return netip.Addr{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("interface %s has no usable address", host))
	}
	return ips[0], nil
}

// onlyAddress is the one global address of this machine; with several, guessing would break joins later, so the user must choose.
func onlyAddress() (netip.Addr, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list network interfaces: %w", err)
	}
	var found []netip.Addr
	var seen []string
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		for _, ip := range interfaceAddresses(i) {
			if ip.Is6() && len(found) > 0 {
				continue
			}
			found = append(found, ip)
			seen = append(seen, fmt.Sprintf("%s on %s", ip, i.Name))
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return netip.Addr{}, errdefs.ErrInvalidArgument.WithMessage("could not find the system's IP address - specify one with --advertise-addr")
	default:
		return netip.Addr{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("could not choose an IP address to advertise since this system has multiple addresses (%s) - specify one with --advertise-addr", strings.Join(seen, ", ")))
	}
}

// interfaceAddresses lists an interface's global addresses, IPv4 first.
func interfaceAddresses(i net.Interface) []netip.Addr {
	addresses, err := i.Addrs()
	if err != nil {
		return nil
	}
	var v4, v6 []netip.Addr
	for _, a := range addresses {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		switch ip := p.Addr(); {
		case ip.Is4():
			v4 = append(v4, ip)
		case ip.IsGlobalUnicast():
			v6 = append(v6, ip)
		}
	}
	return append(v4, v6...)
}
