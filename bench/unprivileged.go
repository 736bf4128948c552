package main

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// unprivilegedWorkload compares 150 bulk streams with 8, in proxies that run as nobody: without privilege
// fs.pipe-user-pages-soft bounds the pipes that a user may have, and a proxy that takes no heed of it gets pipes of 8 KB.
var unprivilegedWorkload = workload{
	name:    "unprivileged",
	rounds:  3,
	takes:   func(p *proxy) bool { return p.kind != peer },
	metrics: []metric{{name: "150 bulk streams as nobody", unit: "× CPU/GB of 8", goals: []goal{{itself, 1.2}}}},
	run: func(b *bench, p *proxy) ([]float64, error) {
		nobody, err := nobody()
		if err != nil {
			return nil, err
		}
		var few, many measurement
		if few, err = b.measureLoad(p, nobody, overTCP, source, bulkStreams(8, discarding), b.window); err != nil {
			return nil, fmt.Errorf("8 streams: %w", err)
		}
		if many, err = b.measureLoad(p, nobody, overTCP, source, bulkStreams(150, discarding), b.window); err != nil {
			return nil, fmt.Errorf("150 streams: %w", err)
		}
		return []float64{many.cpuPerUnit() / few.cpuPerUnit()}, nil
	},
}

// nobody gives the credential of an unprivileged user: nil where this process is one.
func nobody() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("nobody")
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}
