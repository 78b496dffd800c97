package keeper

import (
	"net"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func socketPair(t *testing.T) (here, there *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "pair")
		conn, err := net.FileConn(file)
		if err != nil {
			t.Fatal(err)
		}
		file.Close()
		ends[i] = conn.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

func TestDescriptorTravelsWithItsMessage(t *testing.T) {
	here, there := socketPair(t)
	defer here.Close()
	defer there.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := writeFrame(there, request{Op: opHold, Address: "a"}, int(null.Fd())); err != nil {
		t.Fatal(err)
	}
	if err := writeFrame(there, request{Op: opHello}, -1); err != nil {
		t.Fatal(err)
	}
	var r request
	file, err := readFrame(here, &r)
	if err != nil || file == nil || r.Address != "a" {
		t.Fatalf("%+v, %v, %v", r, file, err)
	}
	if info, err := file.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("%v, %v", info, err)
	}
	file.Close()
	if file, err = readFrame(here, &r); err != nil || file != nil || r.Op != opHello {
		t.Errorf("%+v, %v, %v", r, file, err)
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	err := refuse(explainListen("1.2.3.4:5", unix.EADDRINUSE)).err()
	if !errdefs.IsConflict(err) || err.Error() != "listen on 1.2.3.4:5: another program uses this address; stop it or choose another address: conflict" {
		t.Error(err)
	}
	if err := accept().err(); err != nil {
		t.Error(err)
	}
}

func TestAnotherVersionIsNamed(t *testing.T) {
	_, err := decodeHeader([]byte("SK\x00\x07\x00\x00\x00\x00"))
	if !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
}

func TestIDsCannotLeaveTheirDirectory(t *testing.T) {
	for _, id := range []string{"", ".", "..", "../x", "a/b", "a\x00", "-x"} {
		if err := checkID(id); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", id, err)
		}
	}
}
