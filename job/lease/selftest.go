package lease

// RoleSelfTest marks the disks that a self-test creates. A self-test needs no
// repository; its marks have SelfTestOwner in place of the repository's ID, and
// cleanup of any repository removes the leftovers of a dead self-test.
const (
	RoleSelfTest  = "selftest"
	SelfTestOwner = "self-test"
	SelfTestName  = "xenkeep self-test"
)
