package postgres

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"runtime"
	"strconv"
)

// owner is the user that a server runs as; nil means the user that we are.
type owner struct {
	name     string
	uid, gid uint32
}

// findOwner returns whom to run Postgres as.
func findOwner() (*owner, error) {
	if runtime.GOOS == "windows" {
		return nil, errors.New("a private Postgres needs a Unix system: run the demo in WSL, or use a server of yours with trumpet serve")
	}
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errUID := strconv.ParseUint(u.Uid, 10, 32)
		gid, errGID := strconv.ParseUint(u.Gid, 10, 32)
		if errUID == nil && errGID == nil {
			return &owner{name: name, uid: uint32(uid), gid: uint32(gid)}, nil
		}
	}
	return nil, fmt.Errorf("run postgres: it refuses to run as root, and there is no user postgres or nobody to run it as")
}

// give makes a file or directory the owner's.
func (o *owner) give(path string) error {
	if o == nil {
		return nil
	}
	if err := os.Chown(path, int(o.uid), int(o.gid)); err != nil {
		return fmt.Errorf("give directory to %s: %w", o.name, err)
	}
	return nil
}
