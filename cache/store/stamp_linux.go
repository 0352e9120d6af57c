package store

import "syscall"

func changed(st *syscall.Stat_t) int64 { return st.Ctim.Nano() }

func modified(st *syscall.Stat_t) int64 { return st.Mtim.Nano() }
