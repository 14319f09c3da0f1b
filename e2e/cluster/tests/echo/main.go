// Command echo is the pod of the local cluster's own tests: it says who it is, and what it sees.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/", func(response http.ResponseWriter, request *http.Request) {
		log.Printf("asked by %s", request.RemoteAddr)
		name, _ := os.Hostname()
		fmt.Fprintln(response, name)
	})
	http.HandleFunc("/resolve", func(response http.ResponseWriter, request *http.Request) {
		addresses, err := net.LookupHost(request.FormValue("name"))
		if err != nil {
			http.Error(response, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprintln(response, addresses)
	})
	http.HandleFunc("/fetch", func(response http.ResponseWriter, request *http.Request) {
		answer, err := http.Get(request.FormValue("url"))
		if err != nil {
			http.Error(response, err.Error(), http.StatusBadGateway)
			return
		}
		defer answer.Body.Close()
		io.Copy(response, answer.Body)
	})
	log.Print("listening")
	log.Fatal(http.ListenAndServe(":8080", nil))
}
