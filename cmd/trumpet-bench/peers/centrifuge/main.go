// Command centrifuge is a server made of the centrifuge library, for scripts/bench fanout to measure beside
// Trumpet. It says on standard output where it listens, gives its clients what standard input says, a
// message's data on each line, and ends with standard input. It is a module of its own, so that Trumpet does
// not depend on what it is compared with.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/centrifugal/centrifuge"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "centrifuge:", err)
		os.Exit(1)
	}
}

const channel = "bench"

func run(ctx context.Context) (err error) {
	node, err := centrifuge.New(centrifuge.Config{})
	if err != nil {
		return err
	}
	node.OnConnecting(func(context.Context, centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		return centrifuge.ConnectReply{
			Credentials:   &centrifuge.Credentials{UserID: "bench"},
			Data:          []byte(`"ready"`), // what the bench waits for
			Subscriptions: map[string]centrifuge.SubscribeOptions{channel: {}},
		}, nil
	})
	if err := node.Run(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Shutdown(ctx)) }()
	// Rarer than a measurement is long: the bench's clients do not answer them.
	pings := centrifuge.PingPongConfig{PingInterval: time.Hour, PongTimeout: time.Minute}
	mux := http.NewServeMux()
	mux.Handle("/ws", centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{
		PingPongConfig: pings, ReadBufferSize: 512, UseWriteBufferPool: true, ProcessCommandsOffReadLoop: true,
	}))
	mux.Handle("/api/stream", centrifuge.NewSSEHandler(node, centrifuge.SSEConfig{PingPongConfig: pings}))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	fmt.Println(listener.Addr())
	in := bufio.NewReaderSize(os.Stdin, 64<<10)
	for {
		line, err := in.ReadBytes('\n')
		if err == nil {
			_, err = node.Publish(channel, bytes.TrimSuffix(line, []byte("\n")))
		}
		if err != nil {
			_ = server.Close()
			if failed := <-served; !errors.Is(failed, http.ErrServerClosed) {
				return failed
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}
