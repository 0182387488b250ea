package main

import (
	"github.com/spf13/pflag"

	"xenkeep/internal/limit"
)

// limitFlags hold transfers back.
type limitFlags struct {
	read, write rateFlag
}

func (f *limitFlags) add(s *pflag.FlagSet) {
	s.Var(&f.read, "limit-read", "read from the pool at no more than `rate` bytes a second: 50M, or by hours 20M@08:00-18:00,200M")
	s.Var(&f.write, "limit-write", "send to the storage at no more than `rate` bytes a second, in the same form")
}

// rateFlag is a rate, or several by time of day.
type rateFlag struct{ limit.Schedule }

func (f *rateFlag) Type() string { return "rate" }

func (f *rateFlag) Set(text string) (err error) {
	f.Schedule, err = limit.Parse(text)
	return err
}

func (f *rateFlag) limiter() *limit.Limiter { return limit.New(f.Schedule, nil) }
