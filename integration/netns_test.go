//go:build linux

package integration

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/internal/postgres"
	"github.com/trumpet-realtime/trumpet/sql"
)

// netHost is a host of its own: a network namespace, which a process holds until the test ends.
type netHost struct {
	pid     int  // of the process that holds it
	ours    bool // it is in a user namespace, because we are not root
	address string
	mac     string
}

// netWire joins two hosts.
type netWire struct{ ends [2]*netHost }

// nobodysMAC is a link address that neither host has.
const nobodysMAC = "02:00:00:00:00:ff"

// newNetwork makes two hosts and a wire between them. Nothing of it can be seen from outside.
func newNetwork(t *testing.T) (a, b *netHost, wire *netWire) {
	t.Helper()
	for program, install := range map[string]string{"ip": "apt-get install iproute2", "unshare": "apt-get install util-linux", "nsenter": "apt-get install util-linux"} {
		_, err := exec.LookPath(program)
		mustHave(t, err == nil || exists("/usr/sbin/"+program), program, install)
	}
	a = &netHost{address: "192.0.2.1", mac: "02:00:00:00:00:01", ours: os.Geteuid() != 0}
	b = &netHost{address: "192.0.2.2", mac: "02:00:00:00:00:02", ours: a.ours}
	a.hold(t, nil)
	b.hold(t, a)
	a.ip(t, "link", "add", "wire", "address", a.mac, "type", "veth", "peer", "name", "wire", "address", b.mac, "netns", strconv.Itoa(b.pid))
	for _, h := range []*netHost{a, b} {
		h.ip(t, "address", "add", h.address+"/24", "dev", "wire")
		h.ip(t, "link", "set", "wire", "up")
	}
	wire = &netWire{[2]*netHost{a, b}}
	wire.heal(t)
	return a, b, wire
}

// hold starts the process that holds the namespace. A second host of an ordinary user is in the
// user namespace of the first.
func (h *netHost) hold(t *testing.T, first *netHost) {
	t.Helper()
	args := []string{"--net"}
	if h.ours && first == nil {
		args = append(args, "--user", "--map-root-user")
	}
	cmd := exec.Command("unshare", append(args, "sh", "-c", "PATH=$PATH:/usr/sbin:/sbin; ip link set lo up && echo up && exec cat")...)
	if h.ours && first != nil {
		first.prepend(cmd, "nsenter", "--target", strconv.Itoa(first.pid), "--user", "--preserve-credentials")
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaint logBuffer
	cmd.Stderr = &complaint
	if err := startProcess(cmd); err != nil {
		t.Fatalf("start unshare: %v", err)
	}
	t.Cleanup(func() {
		_ = stdin.Close() // cat ends
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "up\n" {
		t.Fatalf("no network namespace can be made here: %s\nRun the tests as root, or let ordinary users make user namespaces:\n\n"+
			"    sysctl -w user.max_user_namespaces=15000 kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0\n",
			strings.TrimSpace(complaint.String()))
	}
	h.pid = cmd.Process.Pid
}

// prepend makes a command the argument of another one.
func (h *netHost) prepend(cmd *exec.Cmd, wrapper ...string) {
	path, err := exec.LookPath(wrapper[0])
	if err == nil {
		cmd.Args = append(append(wrapper, "--", cmd.Path), cmd.Args[1:]...)
		cmd.Path = path
	}
}

// enter changes a command so that it runs on this host.
func (h *netHost) enter(cmd *exec.Cmd) {
	wrapper := []string{"nsenter", "--target", strconv.Itoa(h.pid), "--net"}
	switch {
	case h.ours:
		wrapper = append(wrapper, "--user", "--preserve-credentials")
	case cmd.SysProcAttr != nil && cmd.SysProcAttr.Credential != nil:
		// Only root may enter.
		who := cmd.SysProcAttr.Credential
		wrapper = append(wrapper, "--setuid", strconv.Itoa(int(who.Uid)), "--setgid", strconv.Itoa(int(who.Gid)))
		cmd.SysProcAttr.Credential = nil
	}
	h.prepend(cmd, wrapper...)
}

// ip configures the host.
func (h *netHost) ip(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"-c", `PATH=$PATH:/usr/sbin:/sbin; exec ip "$@"`, "sh"}, args...)...)
	h.enter(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// cut makes all packets vanish, in both directions and without a word: they go to a link address
// that nobody has. Taking the link down would not do, because the kernel tells its sockets.
func (w *netWire) cut(t *testing.T) { t.Helper(); w.address(t, nobodysMAC, nobodysMAC) }

// heal lets packets through again.
func (w *netWire) heal(t *testing.T) {
	t.Helper()
	w.address(t, w.ends[1].mac, w.ends[0].mac)
}

// address sets where each end's packets go to.
func (w *netWire) address(t *testing.T, macs ...string) {
	t.Helper()
	for i, h := range w.ends {
		h.ip(t, "neighbour", "replace", w.ends[1-i].address, "lladdr", macs[i], "dev", "wire", "nud", "permanent")
	}
}

// startPostgres starts a private Postgres with a migrated database on this host. here connects over
// its Unix socket, from anywhere; there from the other host.
func (h *netHost) startPostgres(t *testing.T) (here, there string) {
	t.Helper()
	server, err := postgres.Start(t.Context(), postgres.Options{
		Settings:        pgtest.Settings(),
		ListenAddresses: []string{h.address},
		Wrap: func(cmd *exec.Cmd) {
			if h.ours {
				h.prepend(cmd, "unshare", "--user", "--map-user=1000", "--map-group=1000") // it refuses to be root
			}
			h.enter(cmd)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := server.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := server.CreateDatabase(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	migrateDatabase(t, server.SocketURL("app"))
	return server.SocketURL("app"), strings.Replace(server.URL("app"), "127.0.0.1", h.address, 1)
}

func migrateDatabase(t *testing.T, url string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := sql.Up(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	prepare(t, capture, url, conn)
}

// workerPort is where workers listen on hosts of their own.
const workerPort = "8766"

// startWorker starts a worker on this host and waits until it is ready. It is reached on loopback,
// whatever happens to the wire, through a relay.
func (h *netHost) startWorker(t *testing.T, database, name, address string) *worker {
	t.Helper()
	w := &worker{name: name, ended: make(chan struct{}), log: logBuffer{changed: make(chan struct{})}}
	w.cmd = exec.Command(binary, "serve", "--listen", net.JoinHostPort(address, workerPort), "--insecure", "--worker", name, "--drain", "200ms", "--log-format", "json")
	w.cmd.Env = append(cleanEnvironment(), "DATABASE_URL="+database, "GORACE=exitcode=66 halt_on_error=1")
	w.cmd.Stderr, w.cmd.Stdout = &w.log, &w.log
	h.enter(w.cmd)
	if err := startProcess(w.cmd); err != nil {
		t.Fatalf("start worker %s: %v", name, err)
	}
	go func() {
		_ = w.cmd.Wait() // what it ended with stands in ProcessState
		close(w.ended)
	}()
	t.Cleanup(func() {
		w.stop(t)
		if strings.Contains(w.log.String(), "DATA RACE") {
			t.Errorf("worker %s has a data race", name)
		}
		if t.Failed() {
			t.Logf("log of worker %s:\n%s", name, w.log.tail(20000))
		}
	})
	w.listensOn(t)
	w.addr = h.relay(t, net.JoinHostPort(address, workerPort))
	w.waitReady(t)
	return w
}

// relayVariable holds where a relay goes to. The process is this program once more.
const relayVariable = "TRUMPET_TEST_RELAY"

// relay starts a process on this host that passes connections on to a target which the host can
// reach, and returns the address that they come to, on our own loopback. The process ends with the test.
func (h *netHost) relay(t *testing.T, target string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), relayVariable+"="+target)
	cmd.ExtraFiles = []*os.File{file} // a socket stays in the network that it was made in
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.enter(cmd)
	if err := startProcess(cmd); err != nil {
		t.Fatalf("start relay: %v", err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	return listener.Addr().String()
}

// A relay must not wait for what TestMain prepares.
func init() {
	if target := os.Getenv(relayVariable); target != "" {
		if err := runRelay(target); err != nil {
			fmt.Fprintln(os.Stderr, "relay:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// runRelay passes on until its standard input ends.
func runRelay(target string) error {
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for {
		from, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer from.Close()
			to, err := net.DialTimeout("tcp", target, 5*time.Second)
			if err != nil {
				return
			}
			defer to.Close()
			done := make(chan struct{}, 2)
			pass := func(to, from net.Conn) {
				_, _ = io.Copy(to, from)
				_ = to.(*net.TCPConn).CloseWrite()
				done <- struct{}{}
			}
			go pass(to, from)
			go pass(from, to)
			<-done
			<-done
		}()
	}
}
