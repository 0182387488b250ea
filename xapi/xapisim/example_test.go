package xapisim_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"xenkeep/xapi"
	"xenkeep/xapi/xapisim"
)

// Start a simulated pool, log in to it as to a real one, and make its next call
// of VM.snapshot fail.
func ExampleNew() {
	ctx := context.Background()
	image := filepath.Join(os.TempDir(), fmt.Sprintf("xapisim-example-%d.raw", os.Getpid()))
	if err := os.WriteFile(image, make([]byte, 8<<20), 0o600); err != nil {
		log.Fatal(err)
	}
	defer os.Remove(image)

	pool, err := xapisim.New(xapisim.Config{
		Hosts: 1,
		VMs:   []xapisim.VMConfig{{Name: "web", Disks: []string{image}}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	client, err := xapi.Dial(ctx, xapi.Config{
		URL: pool.URL(), User: pool.User(), Password: pool.Password(),
		Trust: xapi.Trust{Fingerprints: pool.Fingerprints()},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close(ctx)
	vms, err := client.VMs(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, vm := range vms {
		if vm.IsControlDomain || vm.IsATemplate {
			continue
		}
		fmt.Println(vm.NameLabel, vm.PowerState)
		pool.Fault(xapisim.Fault{On: "VM.snapshot", Code: "SR_FULL", Params: []string{"8388608", "4096"}})
		_, err = client.SnapshotVM(ctx, vm.Ref, "before")
		fmt.Println("no space:", xapi.IsCode(err, "SR_FULL"))
	}
	// Output:
	// web Running
	// no space: true
}
