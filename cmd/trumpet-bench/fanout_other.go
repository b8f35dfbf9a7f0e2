//go:build !linux

package main

import (
	"context"
	"errors"
)

var errLinux = errors.New("this measures with epoll and /proc, which only Linux has")

func measureFanout(context.Context, fanout) error                          { return errLinux }
func measureIngest(context.Context, string, ingest) error                  { return errLinux }
func measureLatency(context.Context, string, capture, int, int, int) error { return errLinux }
func runTarget(context.Context, []string) error                            { return errLinux }
