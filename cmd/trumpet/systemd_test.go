package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// files are the sockets of listeners, as systemd would pass them.
func files(t *testing.T, listeners ...interface{ File() (*os.File, error) }) []*os.File {
	t.Helper()
	var files []*os.File
	for _, l := range listeners {
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

func listenTCP(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// What one process closes still listens: who comes waits for the next one.
func TestInheritedSocketOutlivesWorker(t *testing.T) {
	t.Parallel()
	systemd := listenTCP(t)
	for range 2 {
		worker, err := inherited(files(t, systemd))
		if err != nil {
			t.Fatal(err)
		}
		if worker.Addr().String() != systemd.Addr().String() {
			t.Errorf("it listens on %v, want %v", worker.Addr(), systemd.Addr())
		}
		client, err := net.Dial("tcp", systemd.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := worker.Accept()
		if err != nil {
			t.Fatal(err)
		}
		accepted.Close()
		client.Close()
		if err := worker.Close(); err != nil {
			t.Error(err)
		}
		between, err := net.Dial("tcp", systemd.Addr().String())
		if err != nil {
			t.Fatalf("between two processes: %v", err)
		}
		defer between.Close()
	}
	for range 2 { // those who waited
		if err := systemd.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		waiting, err := systemd.Accept()
		if err != nil {
			t.Fatal(err)
		}
		waiting.Close()
	}
}

func TestInheritedIsRefused(t *testing.T) {
	t.Parallel()
	if l, err := inherited(nil); l != nil || err != nil {
		t.Errorf("nothing is inherited as %v, %v", l, err)
	}
	unix, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	regular, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	for want, given := range map[string][]*os.File{
		"systemd passes 2 sockets": files(t, listenTCP(t), listenTCP(t)),
		"no TCP socket":            files(t, unix.(*net.UnixListener)),
		"cannot listen on what":    {regular},
	} {
		if l, err := inherited(given); l != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("it gives %v, %v, want %q", l, err, want)
		}
	}
}

func TestListenAndInheritedSocket(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		listen   string // empty: not given
		socket   string
		insecure bool
		want     string
	}{
		"alone":             {"", "127.0.0.1:80", false, ""},
		"same":              {"127.0.0.1:80", "127.0.0.1:80", false, ""},
		"localhost":         {"localhost:80", "127.0.0.1:80", false, ""},
		"localhost, v6":     {"LOCALHOST:80", "[::1]:80", false, ""},
		"v4 in v6":          {"127.0.0.1:80", "[::ffff:127.0.0.1]:80", false, ""},
		"everybody":         {"", "0.0.0.0:80", false, "add --insecure"},
		"everybody, v6":     {"", "[::]:80", false, "add --insecure"},
		"everybody, wanted": {":80", "[::]:80", true, ""},
		"other port":        {"127.0.0.1:81", "127.0.0.1:80", false, "leave --listen out"},
		"any port":          {"127.0.0.1:0", "127.0.0.1:80", false, "leave --listen out"},
		"other address":     {"127.0.0.2:80", "127.0.0.1:80", false, "leave --listen out"},
		"wider":             {"127.0.0.1:80", "0.0.0.0:80", true, "leave --listen out"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := serveFlags{listen: "127.0.0.1:8766", insecure: test.insecure}
			if test.listen != "" {
				f.listen, f.listenGiven = test.listen, true
			}
			address, err := net.ResolveTCPAddr("tcp", test.socket)
			if err != nil {
				t.Fatal(err)
			}
			err = f.checkInherited(address)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("it says %v, want %q", err, test.want)
			}
		})
	}
}

// What a worker tells systemd. Where there is none, nothing is said of it.
func TestSystemdNotify(t *testing.T) {
	var log strings.Builder
	notify := systemdNotify(slog.New(slog.NewTextHandler(&log, nil)))
	t.Setenv("NOTIFY_SOCKET", "")
	notify("READY=1")
	if log.Len() > 0 {
		t.Errorf("without systemd it logs %s", log.String())
	}
	path := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	ctx, cancel := context.WithCancel(t.Context())
	w := &worker{notify: notify, ready: &readySink{live: make(chan struct{})}}
	told := make(chan struct{})
	go func() {
		defer close(told)
		w.tell(ctx)
	}()
	hears := func(want string) {
		t.Helper()
		buf := make([]byte, 64)
		if err := systemd.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := systemd.Read(buf)
		if err != nil || string(buf[:n]) != want {
			t.Fatalf("systemd is told %q (%v), want %q", buf[:n], err, want)
		}
	}
	close(w.ready.live)
	hears("READY=1")
	cancel()
	hears("STOPPING=1")
	<-told
	if err := systemd.Close(); err != nil {
		t.Fatal(err)
	}
	notify("READY=1")
	if !strings.Contains(log.String(), "cannot tell systemd") {
		t.Errorf("where nobody listens it logs %q", log.String())
	}
}
