package lab

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs f on an OS thread that runs nothing else, and waits for f. The thread ends with f, whatever f did to it.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: then the thread ends with its goroutine
		if unix.Gettid() == os.Getpid() {
			// Go does not end the process's first thread, and it is what /proc/self shows. It is held here, so that
			// the next goroutine gets another one.
			onThread(f)
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}
