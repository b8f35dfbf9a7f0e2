//go:build !linux

package main

import (
	"context"
	"errors"
)

var errLinux = errors.New("fanout measures with epoll and /proc, which only Linux has")

func measureFanout(context.Context, fanout) error { return errLinux }
func runTarget(context.Context, []string) error   { return errLinux }
