// What grpc-go sees of a front. Prints one line for what went wrong, and exits 1 then.
// Arguments: plain address, TLS address, pid of the server (sent SIGTERM at the end).
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	_ "google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

type raw struct{}

func (raw) Marshal(v any) ([]byte, error)      { return *(v.(*[]byte)), nil }
func (raw) Unmarshal(data []byte, v any) error { *(v.(*[]byte)) = append([]byte(nil), data...); return nil }
func (raw) Name() string                       { return "proto" }

var failed bool

func check(ok bool, what string, seen ...any) {
	if !ok {
		failed = true
		fmt.Println(append([]any{"FAILED:", what}, seen...)...)
	}
}

func main() {
	conns := []*grpc.ClientConn{
		dial(os.Args[1], insecure.NewCredentials()),
		dial(os.Args[2], credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})),
	}
	for _, conn := range conns {
		messages(conn)
		answers(conn)
		endings(conn)
		crowds(conn)
	}
	leaving(conns[0], os.Args[3])
	if failed {
		os.Exit(1)
	}
	fmt.Println("ok")
}

func dial(address string, creds credentials.TransportCredentials) *grpc.ClientConn {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(16<<20)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, PermitWithoutStream: true}))
	if err != nil {
		panic(err)
	}
	return conn
}

func call(ctx context.Context, conn *grpc.ClientConn, method string, in []byte, options ...grpc.CallOption) ([]byte, error) {
	var out []byte
	err := conn.Invoke(ctx, "/t.T/"+method, &in, &out, options...)
	return out, err
}

func messages(conn *grpc.ClientConn) {
	ctx := context.Background()
	for _, size := range []int{0, 300, 4<<20 - 256} {
		in := bytes.Repeat([]byte("abc1"), size/4)
		out, err := call(ctx, conn, "Echo", in)
		check(err == nil && bytes.Equal(in, out), "echo", size, err)
	}
	_, err := call(ctx, conn, "Echo", make([]byte, 5<<20))
	check(status.Code(err) == codes.ResourceExhausted, "5 MiB", err)
	in := bytes.Repeat([]byte("z"), 100000)
	out, err := call(ctx, conn, "Echo", in, grpc.UseCompressor(gzip.Name))
	check(err == nil && bytes.Equal(in, out), "gzip", err)
	_, err = call(ctx, conn, "Echo", make([]byte, 6<<20), grpc.UseCompressor(gzip.Name))
	check(status.Code(err) == codes.ResourceExhausted, "gzip bomb", err)
}

func answers(conn *grpc.ClientConn) {
	ctx := context.Background()
	var header, trailer metadata.MD
	md := metadata.AppendToOutgoingContext(ctx, "x-a", "hello", "x-b-bin", string([]byte{0, 1, 255}))
	_, err := call(md, conn, "Meta", nil, grpc.Header(&header), grpc.Trailer(&trailer))
	check(err == nil && header["x-init"][0] == "i-hello" && trailer["x-trail"][0] == "t" &&
		trailer["x-b-bin"][0] == string([]byte{0, 1, 255}), "metadata", err, header, trailer)
	_, err = call(ctx, conn, "Boom", nil)
	check(status.Code(err) == codes.Aborted && status.Convert(err).Message() == "boom", "status", err)
	_, err = call(ctx, conn, "Nope", nil)
	check(status.Code(err) == codes.Unimplemented, "unknown method", err)
	in, out := append([]byte{10, 7}, "missing"...), []byte{}
	err = conn.Invoke(ctx, "/temporal.api.workflowservice.v1.WorkflowService/DescribeNamespace", &in, &out)
	got := status.Convert(err)
	check(got.Code() == codes.NotFound && len(got.Details()) == 1 && strings.Contains(got.Message(), "\u20ac 100%"), "details", err)
}

func endings(conn *grpc.ClientConn) {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	_, err := call(ctx, conn, "Park", nil)
	cancel()
	check(status.Code(err) == codes.DeadlineExceeded, "deadline", err)
	ctx, cancel = context.WithCancel(context.Background())
	time.AfterFunc(100*time.Millisecond, cancel)
	_, err = call(ctx, conn, "Park", nil)
	check(status.Code(err) == codes.Canceled, "cancel", err)
}

func crowds(conn *grpc.ClientConn) {
	var wg sync.WaitGroup
	var bad atomic.Int32
	many := func(count int, method string, in string, good func([]byte) bool) {
		for range count {
			wg.Add(1)
			go func() {
				defer wg.Done()
				if out, err := call(context.Background(), conn, method, []byte(in)); err != nil || !good(out) {
					bad.Add(1)
				}
			}()
		}
		wg.Wait()
		check(bad.Load() == 0, method, "bad:", bad.Load())
	}
	many(1500, "Slow", "", func(out []byte) bool { return string(out) == "slow ok" }) // more than one connection may have
	many(8, "Big", "4194000", func(out []byte) bool { return len(out) == 4194000 })
	for range 2000 { // one at a time: grpc-go sends a ping with nearly every one
		many(1, "Echo", "x", func(out []byte) bool { return len(out) == 1 })
	}
}

func leaving(conn *grpc.ClientConn, pid string) {
	number, _ := strconv.Atoi(pid)
	done := make(chan error)
	go func() { _, err := call(context.Background(), conn, "Slow", nil); done <- err }()
	time.Sleep(100 * time.Millisecond)
	_ = syscall.Kill(number, syscall.SIGTERM)
	check(<-done == nil, "a call over the server's shutdown")
}
