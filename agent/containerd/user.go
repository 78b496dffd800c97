package containerd

import (
	"context"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/continuity/fs"
	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	usersCachedMax = 1024
	// passwdMax bounds what is read of an image's passwd and group files, in bytes.
	passwdMax = 4 << 20
)

// userCache remembers looked-up users by image and name: an image's passwd file never changes.
type userCache struct {
	mu    sync.Mutex
	byKey map[string]specs.User
}

func (c *userCache) get(key string) (specs.User, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u, ok := c.byKey[key]
	return u, ok
}

func (c *userCache) put(key string, u specs.User) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byKey == nil || len(c.byKey) >= usersCachedMax {
		c.byKey = make(map[string]specs.User)
	}
	c.byKey[key] = u
}

// user resolves a user and additional groups by the image's own passwd and group files.
func (r *Runtime) user(ctx context.Context, digest string, info imageInfo, name string, groups []string) (specs.User, error) {
	key := strings.Join(append([]string{info.chainID, name}, groups...), "\x00")
	if u, ok := r.users.get(key); ok {
		return u, nil
	}
	var u specs.User
	err := r.withImageRoot(ctx, digest, info.chainID, func(root string) (err error) {
		u, err = lookUpUser(openIn(root, "/etc/passwd"), openIn(root, "/etc/group"), openIn(root, "/etc/group"), name, groups)
		return err
	})
	if err != nil {
		return specs.User{}, err
	}
	r.users.put(key, u)
	return u, nil
}

// openIn opens a file of an image, following links inside of it only; an empty reader when there is none.
func openIn(root, path string) io.Reader {
	inside, err := fs.RootPath(root, path)
	if err != nil {
		return strings.NewReader("")
	}
	text, err := readBounded(inside, passwdMax)
	if err != nil {
		return strings.NewReader("")
	}
	return strings.NewReader(string(text))
}

// readBounded reads a regular file of at most max bytes.
func readBounded(path string, max int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > max {
		return nil, invalid("%s is not a file of at most %d bytes", path, max)
	}
	return os.ReadFile(path)
}

// lookUpUser is pure: docker's rules for "user", "uid", "user:group", with the primary group among the additional
// ones: it comes first, then the image's groups of the user in the order of their file, then those asked for by number.
func lookUpUser(passwd, group, groupAgain io.Reader, name string, groups []string) (specs.User, error) {
	found, err := user.GetExecUser(name, nil, passwd, group)
	if err != nil {
		return specs.User{}, invalid("%s", err)
	}
	u := specs.User{UID: uint32(found.Uid), GID: uint32(found.Gid)}
	more, err := user.GetAdditionalGroups(groups, groupAgain)
	if err != nil {
		return specs.User{}, invalid("%s", err)
	}
	slices.Sort(more) // they come in any order
	seen := make(map[uint32]bool)
	for _, gid := range append(append([]int{found.Gid}, found.Sgids...), more...) {
		if !seen[uint32(gid)] {
			seen[uint32(gid)] = true
			u.AdditionalGids = append(u.AdditionalGids, uint32(gid))
		}
	}
	return u, nil
}
