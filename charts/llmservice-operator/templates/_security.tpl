{{/*
Fixed, or Namespace where the platform assigns the IDs: OpenShift's restricted-v2 refuses others.
*/}}
{{- define "llmservice-operator.userIds" -}}
{{- $isOpenShift := .Capabilities.APIVersions.Has "security.openshift.io/v1" -}}
{{- eq .Values.userIds "Auto" | ternary (ternary "Namespace" "Fixed" $isOpenShift) .Values.userIds -}}
{{- end -}}

{{- define "llmservice-operator.podSecurityContext" -}}
{{- $isFixed := eq (include "llmservice-operator.userIds" .) "Fixed" -}}
{{- $context := ternary (dict "runAsUser" 10001 "runAsGroup" 10001) (dict) $isFixed -}}
{{- /* Not merge, which takes the ID 0 for a missing one. */}}
{{- range $field, $value := .Values.podSecurityContext }}
{{- $_ := set $context $field $value }}
{{- end }}
{{- toYaml $context -}}
{{- end -}}

{{/* "true" if the metrics server asks the callers of the load reports for a token, and empty if not. */}}
{{- define "llmservice-operator.requiresToken" -}}
{{- if and .Values.metricsServer.enabled .Values.metricsServer.requireToken }}true{{ end -}}
{{- end -}}

{{/* Volume with the token of a pod for the metrics servers. The kubelet renews the token. */}}
{{- define "llmservice-operator.tokenVolume" -}}
- name: metrics-server-token
  projected:
    sources:
      - serviceAccountToken:
          audience: {{ include "llmservice-operator.metricsServerAudience" . }}
          expirationSeconds: 3600
          path: token
{{- end -}}

{{- define "llmservice-operator.tokenMount" -}}
- name: metrics-server-token
  mountPath: {{ include "llmservice-operator.tokenFolder" . }}
  readOnly: true
{{- end -}}

{{- define "llmservice-operator.tokenVariable" -}}
- name: LLMSERVICE_OPERATOR_TOKEN_FILE
  value: {{ include "llmservice-operator.tokenFolder" . }}/token
{{- end -}}

{{- define "llmservice-operator.tokenFolder" -}}
/var/run/secrets/metrics-server
{{- end -}}

{{- define "llmservice-operator.containerSecurityContext" -}}
{{- .Values.containerSecurityContext | toYaml -}}
{{- end -}}
