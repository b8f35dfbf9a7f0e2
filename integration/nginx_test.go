package integration

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// proxy is a private nginx in front of two workers, with the configuration that we give to users.
type proxy struct {
	both   string // the users' server: either worker
	first  string // the same, but always the first worker
	second string
}

var (
	upstreamServers = regexp.MustCompile(`(?m)^(\s*server 127\.0\.0\.1:)(\d+)( .*;)$`)
	serverBlock     = regexp.MustCompile(`(?ms)^server \{.*^\}`)
	// application is what the example leaves to the user's own application; here it is the pages.
	application = regexp.MustCompile(`(?m)^\s*# location / \{\n.*\n\s*# \}$`)
)

// startNginx starts nginx; it ends with the test.
func startNginx(t *testing.T, first, second *worker) proxy {
	t.Helper()
	const program = "/usr/sbin/nginx"
	path, err := exec.LookPath("nginx")
	if err != nil {
		path = program
	}
	mustHave(t, exists(path), "nginx", "apt-get install nginx-light chromium")
	example, err := os.ReadFile("../scripts/nginx/trumpet.conf")
	if err != nil {
		t.Fatal(err)
	}
	for range 5 { // another process may take a port between our looking and nginx's
		if p, ok := tryNginx(t, path, string(example), first, second); ok {
			return p
		}
	}
	t.Fatal("nginx does not start")
	return proxy{}
}

func tryNginx(t *testing.T, program, example string, first, second *worker) (proxy, bool) {
	t.Helper()
	dir := t.TempDir()
	ports := []int{freePort(t), freePort(t), freePort(t)}
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(nginxConfig(t, dir, example, first.addr, second.addr, ports)), 0o600); err != nil {
		t.Fatal(err)
	}
	log := &logBuffer{}
	cmd := exec.Command(program, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", "stderr")
	cmd.Stdout, cmd.Stderr = log, log
	if err := startProcess(cmd); err != nil {
		t.Fatalf("start nginx: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	stop := func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // its own processes end before it does
		select {
		case <-ended:
		case <-time.After(patience):
			t.Error("nginx did not end on SIGTERM")
			_ = cmd.Process.Kill()
			<-ended
		}
	}
	up := false
	poll(t.Context(), t, "nginx", func() bool {
		select {
		case <-ended:
			return true
		default:
		}
		response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", ports[0]))
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		up = response.StatusCode == http.StatusOK
		return up
	})
	if !up {
		t.Logf("nginx ended at its start:\n%s", log)
		return proxy{}, false
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("log of nginx:\n%s", log.tail(5000))
		}
	})
	at := func(i int) string { return fmt.Sprintf("http://127.0.0.1:%d", ports[i]) }
	return proxy{both: at(0), first: at(1), second: at(2)}, true
}

// nginxConfig is the example with these workers and ports, and twice more its server, each for one worker.
func nginxConfig(t *testing.T, dir, example, first, second string, ports []int) string {
	t.Helper()
	workers := []string{first, second}
	example = upstreamServers.ReplaceAllStringFunc(example, func(line string) string {
		if len(workers) == 0 {
			t.Fatal("the example has more than two workers")
		}
		_, port, _ := strings.Cut(workers[0], ":")
		workers = workers[1:]
		return upstreamServers.ReplaceAllString(line, "${1}"+port+"${3}")
	})
	example = application.ReplaceAllString(example, "    location / {\n        proxy_pass http://trumpet;\n    }")
	server := serverBlock.FindString(example)
	if len(workers) > 0 || !strings.Contains(server, "listen 80;") || !strings.Contains(server, "location / {\n        proxy_pass http://trumpet;") {
		t.Fatalf("scripts/nginx/trumpet.conf is not as this test knows it:\n%s", example)
	}
	listening := func(server string, port int) string {
		return strings.Replace(server, "listen 80;", fmt.Sprintf("listen 127.0.0.1:%d;", port), 1)
	}
	var b strings.Builder
	if os.Geteuid() == 0 {
		b.WriteString("user root;\n") // the folder is ours alone
	}
	fmt.Fprintf(&b, "daemon off;\nworker_processes 1;\npid %[1]s/nginx.pid;\nerror_log stderr;\nevents { worker_connections 256; }\nhttp {\n"+
		"access_log off;\nclient_body_temp_path %[1]s/body;\nproxy_temp_path %[1]s/proxy;\nfastcgi_temp_path %[1]s/fastcgi;\n"+
		"uwsgi_temp_path %[1]s/uwsgi;\nscgi_temp_path %[1]s/scgi;\n", dir)
	b.WriteString(strings.Replace(example, server, listening(server, ports[0]), 1))
	for i, addr := range []string{first, second} {
		name := fmt.Sprintf("only_%d", i+1)
		fmt.Fprintf(&b, "\nupstream %s { server %s; keepalive 16; }\n", name, addr)
		b.WriteString(listening(strings.ReplaceAll(server, "http://trumpet;", "http://"+name+";"), ports[1+i]))
	}
	b.WriteString("\n}\n")
	return b.String()
}

// freePort is a port that nobody listens on at the moment.
func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}
