package s3_test

import (
	"fmt"
	"testing"

	"xenkeep/chunkstore/object"
	"xenkeep/chunkstore/object/objecttest"
	"xenkeep/chunkstore/object/objecttest/s3server"
	"xenkeep/chunkstore/object/s3"
)

func TestKeeper(t *testing.T) {
	server := s3server.StartWith(t, s3server.Options{Lock: true})
	n := 0
	for _, mode := range []s3.LockMode{s3.Compliance, s3.Governance} {
		t.Run(string(mode), func(t *testing.T) {
			objecttest.RunKeeper(t, func(t *testing.T) object.Versioned {
				n++
				c := config(server, fmt.Sprint("k", n))
				c.LockMode = mode
				s, err := s3.Create(t.Context(), c)
				if err != nil {
					t.Fatal(err)
				}
				return s
			})
		})
	}
}
