package lease

// roleSelfTest marks the disks that a self-test creates. A self-test needs no
// repository, so the place of one in its marks holds selfTestOwner, and the
// cleanup of every repository removes what a dead self-test left.
const (
	RoleSelfTest  = "selftest"
	SelfTestOwner = "self-test"
	SelfTestName  = "xenkeep self-test"
)
