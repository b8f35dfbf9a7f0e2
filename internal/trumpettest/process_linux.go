package trumpettest

import (
	"os/exec"
	"syscall"
)

// endWithUs has a process end when the thread that starts it ends.
func endWithUs(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
}
