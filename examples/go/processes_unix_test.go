//go:build unix

package embedbridge

import (
	"sync"
	"syscall"
	"testing"
	"time"
)

func isAlive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func sigkill(pid int) bool { return syscall.Kill(pid, syscall.SIGKILL) == nil }

func TestAHostThatReapsAnyChildLosesNothing(t *testing.T) {
	client := start(t, Options{}, once(t, "--kill-after=1")...) // not parallel: it would steal the others' ends
	done := make(chan struct{})
	var thief sync.WaitGroup
	thief.Add(1)
	go func() {
		defer thief.Done()
		for {
			var status syscall.WaitStatus
			_, _ = syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	for range 3 {
		if _, err := client.Embed(within(t), texts(3), nil); err != nil {
			t.Error(err)
		}
	}
	if client.Stats().Restarts != 1 {
		t.Errorf("%+v", client.Stats())
	}
	if err := client.Close(); err != nil { // it is gone, though nobody knows its end
		t.Error(err)
	}
	close(done)
	thief.Wait()
}
