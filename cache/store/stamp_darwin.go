package store

import "syscall"

func changed(st *syscall.Stat_t) int64 { return st.Ctimespec.Nano() }

func modified(st *syscall.Stat_t) int64 { return st.Mtimespec.Nano() }
