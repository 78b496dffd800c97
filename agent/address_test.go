package agent

import (
	"testing"

	"github.com/containerd/errdefs"
)

func TestAddressesAreCompleted(t *testing.T) {
	for _, c := range []struct{ listen, advertise, wantListen, wantAdvertise string }{
		{"", "192.0.2.7", "0.0.0.0:2377", "192.0.2.7:2377"},
		{"192.0.2.1", "", "192.0.2.1:2377", "192.0.2.1:2377"},
		{"192.0.2.1:4000", "", "192.0.2.1:4000", "192.0.2.1:4000"},
		{":4000", "192.0.2.9", "0.0.0.0:4000", "192.0.2.9:4000"},
		{"0.0.0.0:4000", "192.0.2.9:5000", "0.0.0.0:4000", "192.0.2.9:5000"},
		{"lo", "", "127.0.0.1:2377", "127.0.0.1:2377"},
		{"[2001:db8::1]:4000", "", "[2001:db8::1]:4000", "[2001:db8::1]:4000"},
	} {
		listen, err := resolveListen(c.listen)
		if err != nil || listen != c.wantListen {
			t.Errorf("resolveListen(%q) = %q, %v, want %q", c.listen, listen, err, c.wantListen)
			continue
		}
		advertise, err := resolveAdvertise(c.advertise, listen)
		if err != nil || advertise != c.wantAdvertise {
			t.Errorf("resolveAdvertise(%q, %q) = %q, %v, want %q", c.advertise, listen, advertise, err, c.wantAdvertise)
		}
	}
}

func TestUnusableAddressesAreRefused(t *testing.T) {
	for _, c := range []struct{ listen, advertise string }{
		{"no-such-interface", ""},
		{"192.0.2.1", "no-such-interface"},
		{"192.0.2.1", "0.0.0.0"},
	} {
		listen, err := resolveListen(c.listen)
		if err == nil {
			_, err = resolveAdvertise(c.advertise, listen)
		}
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("listen %q, advertise %q: got %v, want an invalid argument", c.listen, c.advertise, err)
		}
	}
}
