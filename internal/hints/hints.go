package hints

// hinted is an error with its next step.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

func (h *hinted) Hint() string { return h.hint }

// With returns err with a hint, which HintOf finds.
func With(err error, hint string) error { return &hinted{err, hint} }
