//go:build !unix

package main

// allowFiles has nothing to raise here.
func allowFiles(int) error { return nil }
