// Package admin is the way to talk to a running director: HTTP and JSON on a unix socket that only its owner may open.
//
//	GET /v1/status   the whole state as a [Status]
//
// An error is answered with a status of 400 or more and a body {"error": "..."}.
package admin

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/lvsd/lvsd/balancer"
)

// Status is what GET /v1/status answers: the director's own status, and what it runs on.
type Status struct {
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Device  Device    `json:"device"`
	Remarks []string  `json:"remarks"` // what in the network namespace is not as the director needs it
	balancer.Status
}

// Device is the tun device that packets come from and go to.
type Device struct {
	Name     string   `json:"name"`
	IO       string   `json:"io"`       // the way frames are moved: "poll"
	Offloads []string `json:"offloads"` // that the kernel granted
	Queues   []Queue  `json:"queues"`
}

// Queue counts the frames of one queue of the device.
type Queue struct {
	FramesIn  uint64 `json:"frames_in"`
	FramesOut uint64 `json:"frames_out"`
	Refused   uint64 `json:"refused"` // frames that the device did not take
	Wakeups   uint64 `json:"wakeups"` // how often it was idle and had to be woken
}

// Handler answers the API's requests. status may be called concurrently.
func Handler(status func() Status) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, status())
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusNotFound, problem{"there is no " + r.Method + " " + r.URL.Path + "; see docs/operations.md for what there is"})
	})
	return mux
}

type problem struct {
	Error string `json:"error"`
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // the client is gone; nobody is left to tell
}
