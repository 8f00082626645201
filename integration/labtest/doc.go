// Package labtest uses package lab in tests: it says what a test needs, builds a network for it and takes it down, shows
// the network's state when the test fails, and finds what a test left behind.
package labtest
