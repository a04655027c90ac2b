package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	dataMB, stateMB = 1600, 500
	mountLimit      = 10 * time.Second
	// Of linux/fs.h and fs/ext4/ext4.h: x/sys does not have them.
	fiFreeze, fiThaw, extShutdown = 0xC0045877, 0xC0045878, 0x8004587D
	withoutFlush                  = 2 // what was not synced is lost, as when the power goes
)

// disk is a file system of a host's own: ext4 in a file, so that it can hang, die, fill up and lose what nobody synced.
type disk struct {
	mu         sync.Mutex
	image, dir string
}

func newDisk(image, dir string, mb int) (*disk, error) {
	d := &disk{image: image, dir: dir}
	err := sh(fmt.Sprintf("mkdir -p %[2]s && truncate -s %[3]dM %[1]s && mkfs.ext4 -q -m 0 -J size=8 -E lazy_itable_init=1,lazy_journal_init=1 %[1]s", image, dir, mb))
	if err == nil {
		err = d.mount()
	}
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", dir, err)
	}
	return d, sh("chmod 755 " + dir)
}

func (d *disk) mount() error { return sh(fmt.Sprintf("mount -o loop,noatime %s %s", d.image, d.dir)) }

func (d *disk) ioctl(request uintptr, arg *uint32) error {
	f, err := os.Open(d.dir)
	if err != nil {
		return fmt.Errorf("open %s: %w", d.dir, err)
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(arg))); errno != 0 { //nolint:gosec // an ioctl takes a pointer
		return fmt.Errorf("ioctl %x on %s: %w", request, d.dir, errno)
	}
	return nil
}

// hang stops every write and sync; nothing is lost.
func (d *disk) hang() (func() error, error) {
	if err := d.ioctl(fiFreeze, new(uint32)); err != nil {
		return nil, err
	}
	return func() error { return d.ioctl(fiThaw, new(uint32)) }, nil
}

// die has all I/O fail from now on. What was not synced is lost.
func (d *disk) die() error {
	how := uint32(withoutFlush)
	return d.ioctl(extShutdown, &how)
}

// replace mounts what is left of a disk that died. Nobody may use it.
func (d *disk) replace() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for deadline := time.Now().Add(mountLimit); ; {
		err := syscall.Unmount(d.dir, 0)
		if err == nil {
			break
		}
		if time.Now().After(deadline) { // a command of an operator may be reading
			return fmt.Errorf("unmount %s: %w", d.dir, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	for deadline := time.Now().Add(mountLimit); ; {
		err := d.mount()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond) // the kernel lets go of a loop device a moment later
	}
}

// sync has what was done last, even if the power goes next.
func (d *disk) sync() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// fill takes all the space of a disk.
func (d *disk) fill(name string) (func() error, error) {
	file := filepath.Join(d.dir, name)
	out, err := os.Create(file)
	if err != nil {
		if errors.Is(err, syscall.ENOSPC) {
			return nil, nil
		}
		return nil, err
	}
	defer out.Close()
	for size := int64(64 << 20); size >= 4096; {
		at, err := out.Seek(0, 2)
		if err != nil {
			return nil, err
		}
		switch err := syscall.Fallocate(int(out.Fd()), 0, at, size); {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			size /= 2
		}
	}
	return func() error { return errors.Join(os.Remove(file), d.sync()) }, nil
}
