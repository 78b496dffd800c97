package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// recordVersion is the format of the record and, by it, of the whole data directory.
const recordVersion = 1

// record is what a node remembers of its cluster across restarts, beside its certificate.
type record struct {
	FormatVersion int
	ClusterID     string
	NodeID        string
	ListenAddr    string // host:port
	AdvertiseAddr string // host:port
	// Asked is what the addresses were decided from; nil in records of earlier versions.
	Asked *askedAddresses `json:",omitempty"`
	// Managers are host:port of managers that were last known.
	Managers []string
	// Others are host:port of some nodes that were no managers: while this node is away they may take the place of all that were.
	Others []string `json:",omitempty"`
}

// askedAddresses are those of the request that made this node a member, or of the flags that changed since; and the flags of then.
type askedAddresses struct {
	Listen, Advertise         string // an address, an interface's name, or empty
	ListenFlag, AdvertiseFlag string
}

func (n *node) recordPath() string      { return filepath.Join(n.cfg.DataDir, "node.json") }
func (n *node) certificatesDir() string { return filepath.Join(n.cfg.DataDir, "certificates") }
func (n *node) raftDir() string         { return filepath.Join(n.cfg.DataDir, "raft") }

// readRecord returns nil when the node is in no cluster.
func readRecord(path string) (*record, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the node's record: %w", err)
	}
	var r record
	err = json.Unmarshal(data, &r)
	// A newer record may look different in every other way.
	if r.FormatVersion <= recordVersion && err == nil {
		err = r.check()
	}
	if err != nil {
		return nil, fmt.Errorf("the node's record %s is damaged (%w): restore it from a backup, or remove the data directory and join again", path, err)
	}
	if r.FormatVersion > recordVersion {
		return nil, fmt.Errorf("the data directory %s was written by a newer swarm (format %d, this program knows %d): start that version again", filepath.Dir(path), r.FormatVersion, recordVersion)
	}
	return &r, nil
}

// check finds damage that left the JSON valid.
func (r record) check() error {
	for name, id := range map[string]string{"ClusterID": r.ClusterID, "NodeID": r.NodeID} {
		if id == "" || strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
			return fmt.Errorf("%s is %.30q, no id", name, id)
		}
	}
	for _, address := range slices.Concat([]string{r.ListenAddr, r.AdvertiseAddr}, r.Managers, r.Others) {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fmt.Errorf("it holds %.60q, no host:port", address)
		}
	}
	return nil
}

// writeRecord replaces the record so that a crash leaves the old or the new one.
func writeRecord(path string, r record) error {
	r.FormatVersion = recordVersion
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := replaceFile(path, append(data, '\n')); err != nil {
		return fmt.Errorf("write the node's record: %w", err)
	}
	return nil
}

func replaceFile(path string, data []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
