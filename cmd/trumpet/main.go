// Command trumpet is Trumpet on the command line: the server, its demo, the schema's
// migrations, and tools to watch tables, broadcast and follow the log.
//
// It reads configuration and ties the rooms together: package pgbus to package server.
// Every goroutine it starts is waited for by the function that started it.
package main

import (
	"context"
	"os"
)

func main() {
	err := run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv)
	os.Exit(exitCode(err))
}
